//! The configuration: what may be set, where each value came from, what it must be.
//!
//! The idea: [`KEYS`] is the one table of all keys. The flags of the command
//! line, the environment, the file, `sendense config --explain` and the
//! documentation are all made from it, so none can know a key that another
//! does not. Flags go before the environment, the environment before the file,
//! the file before the defaults; every value remembers its [`Origin`], so that a
//! bad one is refused by the name under which it was set.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use sendense::{Error, Result};

/// Read when no `--config` names another file, if it exists.
pub(crate) const DEFAULT_FILE: &str = "/etc/sendense/sendense.toml";

/// What the environment's variables start with.
const PREFIX: &str = "SENDENSE_";

/// The form of a value, as it is named in help and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// An absolute path.
    Path,
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
    /// Free text.
    Text,
}

impl Form {
    /// The placeholder in the help text.
    const fn placeholder(self) -> &'static str {
        match self {
            Self::Path => "PATH",
            Self::Paths => "PATH[:PATH…]",
            Self::Number => "N",
            Self::Duration => "DURATION",
            Self::Size => "SIZE",
            Self::Word => "WORD",
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
/// user; see [`default_value`].
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
        "listen",
        "listen",
        Form::Text,
        "127.0.0.1:8082",
        "Address and port of the HTTP side. Checked, but not used yet: nothing listens there so \
         far.",
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
        "log",
        "log",
        Form::Text,
        "info",
        "What is logged: error, warn, info, debug, trace, or a filter such as \
         info,sendense::image=debug.",
    ),
];

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody set it.
    Default,
    /// The file, and the line if it is known.
    File(PathBuf, usize),
    /// A variable of the environment.
    Environment(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "{name}"),
            Self::Flag(flag) => write!(f, "--{flag}"),
        }
    }
}

/// A value as it was written: one word, or several for a list.
#[derive(Debug, Clone)]
struct Written {
    words: Vec<OsString>,
    list: bool,
    origin: Origin,
}

/// The flags of the command line that set keys; made from [`KEYS`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides(Vec<(&'static Key, Vec<OsString>)>);

impl clap::Args for Overrides {
    fn augment_args(command: clap::Command) -> clap::Command {
        KEYS.iter().fold(command, |command, key| {
            command.arg(
                clap::Arg::new(key.name)
                    .long(key.flag)
                    .value_name(key.form.placeholder())
                    .help(key.doc)
                    .help_heading("Configuration")
                    .hide_short_help(true)
                    .global(true)
                    .value_parser(clap::value_parser!(OsString)),
            )
        })
    }
    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Overrides {
    fn from_arg_matches(matches: &clap::ArgMatches) -> std::result::Result<Self, clap::Error> {
        let mut given = Self::default();
        given.update_from_arg_matches(matches)?;
        Ok(given)
    }
    fn update_from_arg_matches(
        &mut self,
        matches: &clap::ArgMatches,
    ) -> std::result::Result<(), clap::Error> {
        self.0 = KEYS
            .iter()
            .filter_map(|key| {
                let words = matches.get_many::<OsString>(key.name)?;
                Some((key, words.cloned().collect()))
            })
            .collect();
        Ok(())
    }
}

/// What [`Config::load`] puts together.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// The file named by `--config` or `SENDENSE_CONFIG`; it must exist.
    pub(crate) file: Option<PathBuf>,
    /// The environment.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// The flags.
    pub(crate) flags: Overrides,
    /// The effective user id.
    pub(crate) uid: u32,
}

impl Sources {
    /// This process's environment and user.
    pub(crate) fn of_process(file: Option<PathBuf>, flags: Overrides) -> Self {
        let file = file
            .filter(|path| !path.as_os_str().is_empty())
            .or_else(|| {
                let default = PathBuf::from(DEFAULT_FILE);
                default.exists().then_some(default)
            });
        let uid = nix::unistd::geteuid().as_raw();
        Self {
            file,
            environment: std::env::vars_os().collect(),
            flags,
            uid,
        }
    }

    fn variable(&self, name: &str) -> Option<&OsStr> {
        self.environment
            .iter()
            .find(|(n, v)| n == name && !v.is_empty())
            .map(|(_, v)| v.as_os_str())
    }
}

/// Whether other users may enter the mounted tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AllowOther {
    /// Yes if the daemon is root.
    Auto,
    /// Yes.
    Yes,
    /// No.
    No,
}

/// What an open gate does to `serve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GatePolicy {
    /// It does not start.
    Enforce,
    /// It warns.
    Warn,
}

/// The effective configuration. The meaning of each field stands in [`KEYS`].
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub(crate) struct Config {
    pub(crate) mountpoint: PathBuf,
    pub(crate) repositories: Vec<PathBuf>,
    pub(crate) state_dir: PathBuf,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) slots: usize,
    pub(crate) idle_timeout: Duration,
    pub(crate) sweep_interval: Duration,
    /// Bytes.
    pub(crate) cache_size: u64,
    pub(crate) xattrs: bool,
    pub(crate) listen: SocketAddr,
    pub(crate) request_timeout: Duration,
    pub(crate) start_timeout: Duration,
    pub(crate) connections: usize,
    /// Bytes; 0 leaves the kernel's default.
    pub(crate) read_ahead: u64,
    pub(crate) allow_other: AllowOther,
    pub(crate) gate: GatePolicy,
    pub(crate) group: String,
    pub(crate) log: String,
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    /// The effective user id that the defaults were made for.
    pub(crate) uid: u32,
    written: Vec<(&'static Key, Written)>,
}

impl Config {
    /// Puts the sources together and checks every value.
    ///
    /// # Errors
    /// `Invalid` naming the key, where it was set, and why it is refused.
    pub(crate) fn load(sources: &Sources) -> Result<Self> {
        let mut file = match &sources.file {
            Some(path) => read_file(path)?,
            None => Vec::new(),
        };
        refuse_near_misses(&sources.environment)?;
        let mut values = Values {
            written: Vec::with_capacity(KEYS.len()),
        };
        for key in KEYS {
            let from_file = file
                .iter()
                .position(|(k, _)| k.name == key.name)
                .map(|at| file.swap_remove(at).1);
            let written = from_flags(&sources.flags, key)
                .or_else(|| from_environment(sources, key))
                .or(from_file)
                .unwrap_or_else(|| default_value(key, sources));
            values.written.push((key, written));
        }
        let config = Self {
            mountpoint: values.path("mountpoint")?,
            repositories: values.paths("repositories")?,
            state_dir: values.path("state_dir")?,
            runtime_dir: values.path("runtime_dir")?,
            slots: values.number("slots", 1, 10_000, "the daemon could attach no disk at all")?,
            idle_timeout: values.duration("idle_timeout")?,
            sweep_interval: values.duration("sweep_interval")?,
            cache_size: values.size("cache_size", 1 << 20, 1 << 40)?,
            xattrs: values.word("xattrs", &[("true", true), ("false", false)])?,
            listen: values.parsed("listen", "an address and a port, such as 127.0.0.1:8082")?,
            request_timeout: values.duration("request_timeout")?,
            start_timeout: values.duration("start_timeout")?,
            connections: values.number("connections", 1, 16, "no disk could be read")?,
            read_ahead: values.size("read_ahead", 0, 16 << 20)?,
            allow_other: values.word(
                "allow_other",
                &[
                    ("auto", AllowOther::Auto),
                    ("true", AllowOther::Yes),
                    ("false", AllowOther::No),
                ],
            )?,
            gate: values.word(
                "gate",
                &[("enforce", GatePolicy::Enforce), ("warn", GatePolicy::Warn)],
            )?,
            group: values.text("group")?,
            log: values.text("log")?,
            file: sources.file.clone(),
            uid: sources.uid,
            written: Vec::new(),
        };
        if let Err(error) = crate::logging::filter(&config.log) {
            return Err(values.refuse("log", &error));
        }
        Ok(Self {
            written: values.written,
            ..config
        })
    }

    /// Where the catalog lies.
    pub(crate) fn catalog_path(&self) -> PathBuf {
        self.state_dir.join("catalog.db")
    }

    /// Whether the tree is mounted for other users too.
    pub(crate) fn allows_other(&self) -> bool {
        match self.allow_other {
            AllowOther::Auto => self.uid == 0,
            AllowOther::Yes => true,
            AllowOther::No => false,
        }
    }

    /// Where the value of `name` came from.
    pub(crate) fn origin(&self, name: &str) -> &Origin {
        self.written
            .iter()
            .find(|(key, _)| key.name == name)
            .map_or(&Origin::Default, |(_, written)| &written.origin)
    }

    /// The effective values as a file, each with a comment that says where it
    /// came from.
    pub(crate) fn to_toml(&self) -> String {
        let lines: Vec<(String, String)> = self
            .written
            .iter()
            .map(|(key, w)| {
                (
                    format!("{} = {}", key.name, literal(key, w)),
                    w.origin.to_string(),
                )
            })
            .collect();
        let width = lines
            .iter()
            .map(|(line, _)| line.chars().count())
            .max()
            .unwrap_or(0);
        lines.iter().fold(String::new(), |mut out, (line, origin)| {
            let _ = writeln!(out, "{line:width$}  # {origin}");
            out
        })
    }
}

/// All keys with their meaning, as a file whose every line is a comment.
pub(crate) fn explain() -> String {
    let mut out = String::from(
        "# Configuration of sendense. Each key can also be given in the environment\n\
         # (SENDENSE_<KEY>) or as a flag; flags go before the environment, the\n\
         # environment before this file. The values here are the defaults.\n",
    );
    for key in KEYS {
        out.push_str("\n#");
        let mut column = 1;
        for word in key.doc.split_whitespace() {
            let width = word.chars().count().saturating_add(1);
            if column + width > 79 {
                out.push_str("\n#");
                column = 1;
            }
            let _ = write!(out, " {word}");
            column += width;
        }
        let written = Written {
            words: split(key, OsStr::new(key.default)),
            list: key.form == Form::Paths,
            origin: Origin::Default,
        };
        let _ = write!(out, "\n# {} = {}\n", key.name, literal(key, &written));
    }
    out
}

/// A value as it stands in the file.
fn literal(key: &Key, written: &Written) -> String {
    let quote = |word: &OsString| format!("{:?}", word.to_string_lossy());
    let first = || written.words.first().cloned().unwrap_or_default();
    match key.form {
        Form::Paths => {
            format!(
                "[{}]",
                written
                    .words
                    .iter()
                    .map(quote)
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        }
        Form::Number => first().to_string_lossy().into_owned(),
        _ if first() == "true" || first() == "false" => first().to_string_lossy().into_owned(),
        _ => quote(&first()),
    }
}

/// The words of a value given as one string.
fn split(key: &Key, text: &OsStr) -> Vec<OsString> {
    match key.form {
        Form::Paths => text
            .as_bytes()
            .split(|b| *b == b':')
            .filter(|word| !word.is_empty())
            .map(|word| OsString::from_vec(word.to_vec()))
            .collect(),
        _ => vec![text.to_owned()],
    }
}

fn from_flags(flags: &Overrides, key: &'static Key) -> Option<Written> {
    let (_, words) = flags.0.iter().find(|(k, _)| k.name == key.name)?;
    let words = words.iter().flat_map(|word| split(key, word)).collect();
    Some(Written {
        words,
        list: key.form == Form::Paths,
        origin: Origin::Flag(key.flag),
    })
}

fn from_environment(sources: &Sources, key: &Key) -> Option<Written> {
    let name = variable_name(key);
    let value = sources.variable(&name)?;
    let list = key.form == Form::Paths;
    Some(Written {
        words: split(key, value),
        list,
        origin: Origin::Environment(name),
    })
}

fn variable_name(key: &Key) -> String {
    format!("{PREFIX}{}", key.name.to_ascii_uppercase())
}

/// The default, which for two folders depends on the user.
fn default_value(key: &Key, sources: &Sources) -> Written {
    let home = |variable: &str, below: &str| {
        sources
            .variable(variable)
            .map(Path::new)
            .filter(|p| p.is_absolute())
            .map(|p| p.join(below))
    };
    let of_user = match (sources.uid, key.name) {
        (0, _) => None,
        (_, "state_dir") => {
            home("XDG_STATE_HOME", "sendense").or_else(|| home("HOME", ".local/state/sendense"))
        }
        (uid, "runtime_dir") => home("XDG_RUNTIME_DIR", "sendense")
            .or_else(|| Some(PathBuf::from(format!("/run/user/{uid}/sendense")))),
        _ => None,
    };
    let words = match of_user {
        Some(path) => vec![path.into_os_string()],
        None => split(key, OsStr::new(key.default)),
    };
    Written {
        words,
        list: key.form == Form::Paths,
        origin: Origin::Default,
    }
}

/// Reads the file into words; says line and name of what it refuses.
fn read_file(path: &Path) -> Result<Vec<(&'static Key, Written)>> {
    use toml::de::{DeTable, DeValue};
    let text =
        std::fs::read_to_string(path).map_err(|e| Error::io(path.display().to_string(), e))?;
    let line = |at: usize| {
        text.as_bytes()
            .iter()
            .take(at)
            .filter(|b| **b == b'\n')
            .count()
            .saturating_add(1)
    };
    let refuse = |at: usize, reason: String| {
        Error::Invalid(format!("{}:{}: {reason}", path.display(), line(at)))
    };
    let table = DeTable::parse(&text)
        .map_err(|e| refuse(e.span().map_or(0, |s| s.start), one_line(e.message())))?;
    let mut values = Vec::new();
    for (name, value) in table.get_ref() {
        let at = name.span().start;
        let key = find(name.get_ref()).ok_or_else(|| refuse(at, unknown("key", name.get_ref())))?;
        let list = value.get_ref().is_array();
        if list != (key.form == Form::Paths) {
            let wanted = if list {
                "one value, not a list"
            } else {
                "a list, such as [\"/a\", \"/b\"]"
            };
            return Err(refuse(at, format!("{}: must be {wanted}", key.name)));
        }
        let word = |value: &DeValue<'_>| match value {
            DeValue::String(text) => Ok(OsString::from(text.as_ref())),
            DeValue::Integer(number) if number.radix() == 10 => Ok(OsString::from(number.as_str())),
            DeValue::Boolean(value) => Ok(OsString::from(value.to_string())),
            other => Err(refuse(
                at,
                format!("{}: cannot be a {}", key.name, other.type_str()),
            )),
        };
        let words = match value.get_ref() {
            DeValue::Array(items) => items
                .iter()
                .map(|i| word(i.get_ref()))
                .collect::<Result<_>>()?,
            single => vec![word(single)?],
        };
        values.push((
            key,
            Written {
                words,
                list,
                origin: Origin::File(path.to_owned(), line(at)),
            },
        ));
    }
    Ok(values)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// A variable that is nearly one of ours is a mistake; one that is not is
/// somebody else's.
fn refuse_near_misses(environment: &[(OsString, OsString)]) -> Result<()> {
    for (name, _) in environment {
        let Some(name) = name.to_str() else { continue };
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let lower = rest.to_ascii_lowercase();
        if lower != "config" && find(&lower).is_none() && nearest(&lower).is_some() {
            return Err(Error::Invalid(unknown("variable", name)));
        }
    }
    Ok(())
}

fn unknown(what: &str, name: &str) -> String {
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
fn nearest(name: &str) -> Option<&'static Key> {
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

/// Turns words into values; every refusal names the key and where it was set.
struct Values {
    written: Vec<(&'static Key, Written)>,
}

impl Values {
    fn get(&self, name: &str) -> Result<&Written> {
        self.written
            .iter()
            .find(|(key, _)| key.name == name)
            .map(|(_, written)| written)
            .ok_or_else(|| Error::Invalid(format!("{name}: no such key")))
    }

    fn refuse(&self, name: &str, reason: &str) -> Error {
        let origin = self.get(name).map_or(Origin::Default, |w| w.origin.clone());
        Error::Invalid(match origin {
            Origin::Default => format!("{name}: {reason}"),
            // The flag's or the variable's name is the key's already.
            Origin::Flag(_) | Origin::Environment(_) => format!("{origin}: {reason}"),
            Origin::File(..) => format!("{origin}: {name}: {reason}"),
        })
    }

    fn word_of(&self, name: &str) -> Result<&OsStr> {
        let written = self.get(name)?;
        match written.words.last() {
            Some(word) if !word.is_empty() && !written.list => Ok(word),
            _ => Err(self.refuse(name, "must not be empty")),
        }
    }

    fn text(&self, name: &str) -> Result<String> {
        match self.word_of(name)?.to_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(self.refuse(name, "must be UTF-8 text")),
        }
    }

    fn absolute(&self, name: &str, word: &OsStr) -> Result<PathBuf> {
        let path = Path::new(word);
        if !path.is_absolute() {
            let reason = format!(
                "{word:?} is relative; give the absolute path, the daemon has no working folder"
            );
            return Err(self.refuse(name, &reason));
        }
        if path.components().any(|c| c == Component::ParentDir) {
            return Err(self.refuse(name, &format!("{word:?} must not contain `..`")));
        }
        if path.parent().is_none() {
            return Err(self.refuse(name, "must not be the root folder"));
        }
        Ok(path.components().collect())
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        self.absolute(name, self.word_of(name)?)
    }

    fn paths(&self, name: &str) -> Result<Vec<PathBuf>> {
        let words = &self.get(name)?.words;
        words.iter().map(|word| self.absolute(name, word)).collect()
    }

    fn number(&self, name: &str, least: usize, most: usize, zero: &str) -> Result<usize> {
        let text = self.text(name)?;
        match text.parse::<usize>() {
            Ok(0) if least > 0 => Err(self.refuse(name, &format!("must not be 0: {zero}"))),
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            Ok(number) => {
                Err(self.refuse(name, &format!("{number} is not between {least} and {most}")))
            }
            Err(_) => Err(self.refuse(
                name,
                &format!("{text:?} is not a whole number ({least} to {most})"),
            )),
        }
    }

    fn duration(&self, name: &str) -> Result<Duration> {
        let text = self.text(name)?;
        match humantime::parse_duration(&text) {
            Ok(Duration::ZERO) => Err(self.refuse(name, "must be longer than 0")),
            // Far more would overflow a deadline.
            Ok(duration) if duration.as_secs() > 10 * 365 * 86_400 => {
                Err(self.refuse(name, "must not be longer than ten years"))
            }
            Ok(duration) => Ok(duration),
            Err(_) => Err(self.refuse(
                name,
                &format!("{text:?} is not a duration with its unit, such as 500ms, 90s, 5m or 1h"),
            )),
        }
    }

    fn size(&self, name: &str, least: u64, most: u64) -> Result<u64> {
        let text = self.text(name)?;
        let size = text
            .parse::<bytesize::ByteSize>()
            .map_err(|_| self.refuse(name, &format!("{text:?} is not a size, such as 64MiB")))?
            .as_u64();
        if size == 0 && least > 0 {
            return Err(self.refuse(
                name,
                &format!("must not be 0; at least {}", show_size(least)),
            ));
        }
        if !(least..=most).contains(&size) {
            let (least, most) = (show_size(least), show_size(most));
            return Err(self.refuse(name, &format!("{text} is not between {least} and {most}")));
        }
        Ok(size)
    }

    fn word<T: Copy>(&self, name: &str, words: &[(&str, T)]) -> Result<T> {
        let text = self.text(name)?;
        words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                self.refuse(name, &format!("{text:?} is not one of {}", all.join(", ")))
            })
    }

    fn parsed<T: std::str::FromStr>(&self, name: &str, wanted: &str) -> Result<T> {
        let text = self.text(name)?;
        text.parse()
            .map_err(|_| self.refuse(name, &format!("{text:?} is not {wanted}")))
    }
}

/// A size as people read it.
pub(crate) fn show_size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}

#[cfg(test)]
mod tests;
