//! The table of all keys, and the search for the one that was meant.

/// What the environment's variables start with.
pub(super) const PREFIX: &str = "SENDENSE_";

/// The form of a value, as it is named in help and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// An absolute path.
    Path,
    /// An absolute path, or nothing.
    OptionalPath,
    /// Absolute paths.
    Paths,
    /// A whole number.
    Number,
    /// `90s`, `1h`.
    Duration,
    /// `64MiB`.
    Size,
    /// `true`, `false`, or one of a few words.
    Word,
    /// Permissions in octal.
    Mode,
    /// Free text.
    Text,
}

impl Form {
    /// The placeholder in the help text.
    pub(super) const fn placeholder(self) -> &'static str {
        match self {
            Self::Path | Self::OptionalPath => "PATH",
            Self::Paths => "PATH[:PATH…]",
            Self::Number => "N",
            Self::Duration => "DURATION",
            Self::Size => "SIZE",
            Self::Word => "WORD",
            Self::Mode => "MODE",
            Self::Text => "TEXT",
        }
    }
}

/// One key of the configuration.
#[derive(Debug)]
pub(crate) struct Key {
    /// Its name in the file; the environment has `SENDENSE_<NAME>`.
    pub(crate) name: &'static str,
    /// Its name as a flag, without the dashes.
    pub(crate) flag: &'static str,
    /// What its value looks like.
    pub(crate) form: Form,
    /// The default, as one would write it.
    pub(crate) default: &'static str,
    /// What it does, in a sentence or two.
    pub(crate) doc: &'static str,
}

const fn key(
    name: &'static str,
    flag: &'static str,
    form: Form,
    default: &'static str,
    doc: &'static str,
) -> Key {
    Key {
        name,
        flag,
        form,
        default,
        doc,
    }
}

/// All keys. `state_dir` and `runtime_dir` have other defaults for an ordinary
/// user; see `default_value` in the module above.
pub(crate) const KEYS: &[Key] = &[
    key(
        "mountpoint",
        "mountpoint",
        Form::Path,
        "/srv/sendense/backups",
        "The folder where the tree of backups appears.",
    ),
    key(
        "repositories",
        "repositories",
        Form::Paths,
        "",
        "The folders that hold backup images. An image, its backing files and its data files are \
         read only if they lie inside one of these. A list in the file; colons between the paths \
         elsewhere.",
    ),
    key(
        "state_dir",
        "state-dir",
        Form::Path,
        "/var/lib/sendense",
        "What is kept over restarts: the catalog (catalog.db). For an ordinary user the default \
         is $XDG_STATE_HOME/sendense or ~/.local/state/sendense.",
    ),
    key(
        "runtime_dir",
        "runtime-dir",
        Form::Path,
        "/run/sendense",
        "Sockets of the running daemon. For an ordinary user the default is \
         $XDG_RUNTIME_DIR/sendense or /run/user/<uid>/sendense.",
    ),
    key(
        "slots",
        "slots",
        Form::Number,
        "8",
        "How many disks are attached at once (1 to 10000). One more releases the least recently \
         used.",
    ),
    key(
        "idle_timeout",
        "idle-timeout",
        Form::Duration,
        "1h",
        "A disk that nobody read for so long is released.",
    ),
    key(
        "sweep_interval",
        "sweep-interval",
        Form::Duration,
        "60s",
        "How often idle disks are looked for.",
    ),
    key(
        "cache_size",
        "cache-size",
        Form::Size,
        "64MiB",
        "Memory for the metadata blocks of all disks together (at least 1MiB).",
    ),
    key(
        "xattrs",
        "xattrs",
        Form::Word,
        "true",
        "Whether the tree shows extended attributes and ACLs (true or false). Without them \
         listings of large folders are faster.",
    ),
    key(
        "guest_time_zone",
        "guest-time-zone",
        Form::Text,
        "UTC",
        "The time zone of guests whose file system keeps local time (FAT, and exFAT where a time \
         does not say): a name such as Europe/Berlin, or an offset such as +02:00.",
    ),
    key(
        "listen",
        "listen",
        Form::Text,
        "127.0.0.1:8082",
        "Address and port of the HTTP side. Other addresses than loopback need tls_certificate \
         and tls_key, or allow_plain_http.",
    ),
    key(
        "api",
        "api",
        Form::Word,
        "true",
        "Whether serve starts the HTTP side (sendense api) and keeps it running (true or false). \
         With false it can be run by itself.",
    ),
    key(
        "api_user",
        "api-user",
        Form::Text,
        "nobody",
        "The ordinary user that the HTTP side becomes when it is started by root; its group is \
         the one of the key group.",
    ),
    key(
        "tls_certificate",
        "tls-certificate",
        Form::OptionalPath,
        "",
        "The server's certificate and those between it and its authority (PEM). With it the HTTP \
         side speaks TLS only.",
    ),
    key(
        "tls_key",
        "tls-key",
        Form::OptionalPath,
        "",
        "The certificate's private key (PEM), readable by nobody but its owner.",
    ),
    key(
        "allow_plain_http",
        "allow-plain-http",
        Form::Word,
        "false",
        "Whether passwords and files may go over the network without TLS (true or false). \
         Without it only loopback addresses do without a certificate.",
    ),
    key(
        "token_lifetime",
        "token-lifetime",
        Form::Duration,
        "12h",
        "How long one is logged in to the HTTP side.",
    ),
    key(
        "max_downloads",
        "max-downloads",
        Form::Number,
        "64",
        "How many downloads run at once over HTTP (1 to 1000). More are asked to come back \
         later.",
    ),
    key(
        "max_file_size",
        "max-file-size",
        Form::Size,
        "0",
        "The largest file that can be downloaded over HTTP; 0 for any.",
    ),
    key(
        "max_archive_size",
        "max-archive-size",
        Form::Size,
        "0",
        "The most that can be downloaded over HTTP as one archive, before compression; 0 for \
         any.",
    ),
    key(
        "download_timeout",
        "download-timeout",
        Form::Duration,
        "24h",
        "How long one download over HTTP may take.",
    ),
    key(
        "stall_timeout",
        "stall-timeout",
        Form::Duration,
        "60s",
        "A client of the HTTP side that takes nothing of its answer for so long is dropped.",
    ),
    key(
        "audit_retention",
        "audit-retention",
        Form::Duration,
        "1y",
        "How long the record of who took what over HTTP is kept.",
    ),
    key(
        "metrics",
        "metrics",
        Form::Word,
        "true",
        "Whether /metrics answers (true or false). It needs no password and names no VM, user \
         or file.",
    ),
    key(
        "request_timeout",
        "request-timeout",
        Form::Duration,
        "30s",
        "How long one read may take, a restart of qemu-nbd included, before it is an error.",
    ),
    key(
        "start_timeout",
        "start-timeout",
        Form::Duration,
        "10s",
        "How long qemu-nbd may take to open an image.",
    ),
    key(
        "connections",
        "connections",
        Form::Number,
        "2",
        "Connections to the qemu-nbd of each disk (1 to 16). More than two help only many readers \
         of one disk.",
    ),
    key(
        "read_ahead",
        "read-ahead",
        Form::Size,
        "1MiB",
        "How far the kernel reads ahead in the mounted tree (root only; up to 16MiB; 0 leaves the \
         kernel's default).",
    ),
    key(
        "allow_other",
        "allow-other",
        Form::Word,
        "auto",
        "Whether other users than the daemon's may enter the mounted tree: true, false, or auto \
         (true for root).",
    ),
    key(
        "gate",
        "gate",
        Form::Word,
        "enforce",
        "What to do if every user of this host could reach the mounted tree: enforce (do not \
         start) or warn.",
    ),
    key(
        "group",
        "group",
        Form::Text,
        "sendense",
        "The group whose members may read all backups and ask the daemon for its status.",
    ),
    key(
        "guest_owner",
        "guest-owner",
        Form::Text,
        "0:0",
        "The owner shown for files of formats that know no owners of Linux (NTFS, FAT, exFAT): \
         USER:GROUP, by number or by a name of this host.",
    ),
    key(
        "guest_file_mode",
        "guest-file-mode",
        Form::Mode,
        "0644",
        "The permissions shown for files of such formats, in octal. Files that are read-only in \
         the guest lose the bits for writing.",
    ),
    key(
        "guest_folder_mode",
        "guest-folder-mode",
        Form::Mode,
        "0755",
        "The permissions shown for folders of such formats, in octal.",
    ),
    key(
        "guest_ignore_case",
        "guest-ignore-case",
        Form::Word,
        "false",
        "Whether names are found in any mixture of upper and lower case (true or false) where \
         the guest's own system would find them: NTFS, FAT, exFAT.",
    ),
    key(
        "log",
        "log",
        Form::Text,
        "info",
        "What is logged: error, warn, info, debug, trace, or a filter such as \
         info,sendense::image=debug.",
    ),
];

/// The key's name in the environment.
pub(super) fn variable_name(key: &Key) -> String {
    format!("{PREFIX}{}", key.name.to_ascii_uppercase())
}

/// The key of this name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// A sentence on a name that is no key's.
pub(super) fn unknown(what: &str, name: &str) -> String {
    let bare = name
        .strip_prefix(PREFIX)
        .unwrap_or(name)
        .to_ascii_lowercase();
    match nearest(&bare) {
        Some(key) if what == "variable" => {
            format!(
                "unknown {what} {name}; did you mean {}?",
                variable_name(key)
            )
        }
        Some(key) => format!("unknown {what} {name:?}; did you mean {:?}?", key.name),
        None => format!("unknown {what} {name:?}; `sendense config --explain` lists them all"),
    }
}

/// The key that `name` may have been meant to be.
pub(super) fn nearest(name: &str) -> Option<&'static Key> {
    let name = name.replace('-', "_");
    KEYS.iter()
        .map(|key| (distance(key.name, &name), key))
        .filter(|(distance, key)| *distance <= 2 && *distance < key.name.len() / 2 + 1)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, key)| key)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (cb, &above) in b.chars().zip(row.iter().skip(1)) {
            left = (diagonal + usize::from(ca != cb))
                .min(above + 1)
                .min(left + 1);
            diagonal = above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}
