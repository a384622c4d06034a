//! The configuration: what may be set, where each value came from, what it must be.
//!
//! The idea: [`KEYS`] is the one table of all keys. The flags of the command
//! line, the environment, the file, `sendense config --explain` and the
//! documentation are all made from it, so none can know a key that another
//! does not. Flags go before the environment, the environment before the file,
//! the file before the defaults; every value remembers its [`Origin`], so that a
//! bad one is refused by the name under which it was set.

mod keys;
mod values;

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sendense::{Error, Result};

use self::keys::{Form, KEYS, Key, PREFIX, find, nearest, unknown, variable_name};
use self::values::Values;
pub(crate) use self::values::show_size;

/// Read when no `--config` names another file, if it exists.
pub(crate) const DEFAULT_FILE: &str = "/etc/sendense/sendense.toml";

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
    /// The zone of guests that keep local time.
    pub(crate) guest_time_zone: jiff::tz::TimeZone,
    /// Bytes.
    pub(crate) cache_size: u64,
    pub(crate) xattrs: bool,
    pub(crate) listen: SocketAddr,
    pub(crate) api: bool,
    pub(crate) api_user: String,
    /// Certificate and key.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    pub(crate) allow_plain_http: bool,
    pub(crate) token_lifetime: Duration,
    pub(crate) max_downloads: usize,
    /// Bytes; `None` for any.
    pub(crate) max_file_size: Option<u64>,
    /// Bytes; `None` for any.
    pub(crate) max_archive_size: Option<u64>,
    pub(crate) download_timeout: Duration,
    pub(crate) stall_timeout: Duration,
    pub(crate) audit_retention: Duration,
    pub(crate) metrics: bool,
    pub(crate) request_timeout: Duration,
    pub(crate) start_timeout: Duration,
    pub(crate) connections: usize,
    /// Bytes; 0 leaves the kernel's default.
    pub(crate) read_ahead: u64,
    pub(crate) allow_other: AllowOther,
    pub(crate) gate: GatePolicy,
    pub(crate) group: String,
    /// User and group.
    pub(crate) guest_owner: (u32, u32),
    pub(crate) guest_file_mode: u16,
    pub(crate) guest_folder_mode: u16,
    pub(crate) guest_ignore_case: bool,
    pub(crate) log: String,
    /// The effective user id that the defaults were made for.
    pub(crate) uid: u32,
    file: Option<PathBuf>,
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
        let flag = [("true", true), ("false", false)];
        let limit = |size: u64| (size > 0).then_some(size);
        let config = Self {
            mountpoint: values.path("mountpoint")?,
            repositories: values.paths("repositories")?,
            state_dir: values.path("state_dir")?,
            runtime_dir: values.path("runtime_dir")?,
            slots: values.number("slots", 1, 10_000, "the daemon could attach no disk at all")?,
            idle_timeout: values.duration("idle_timeout")?,
            sweep_interval: values.duration("sweep_interval")?,
            cache_size: values.size("cache_size", 1 << 20, 1 << 40)?,
            xattrs: values.word("xattrs", &flag)?,
            guest_time_zone: values.time_zone("guest_time_zone")?,
            listen: values.parsed("listen", "an address and a port, such as 127.0.0.1:8082")?,
            api: values.word("api", &flag)?,
            api_user: values.text("api_user")?,
            tls: match (
                values.optional_path("tls_certificate")?,
                values.optional_path("tls_key")?,
            ) {
                (Some(certificate), Some(key)) => Some((certificate, key)),
                (None, None) => None,
                (Some(_), None) => {
                    return Err(values.refuse("tls_certificate", "needs tls_key as well"));
                }
                (None, Some(_)) => {
                    return Err(values.refuse("tls_key", "needs tls_certificate as well"));
                }
            },
            allow_plain_http: values.word("allow_plain_http", &flag)?,
            token_lifetime: values.duration("token_lifetime")?,
            max_downloads: values.number("max_downloads", 1, 1000, "nothing could be taken")?,
            max_file_size: limit(values.size("max_file_size", 0, 1 << 60)?),
            max_archive_size: limit(values.size("max_archive_size", 0, 1 << 60)?),
            download_timeout: values.duration("download_timeout")?,
            stall_timeout: values.duration("stall_timeout")?,
            audit_retention: values.duration("audit_retention")?,
            metrics: values.word("metrics", &flag)?,
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
            guest_owner: values.owner("guest_owner")?,
            guest_file_mode: values.mode("guest_file_mode")?,
            guest_folder_mode: values.mode("guest_folder_mode")?,
            guest_ignore_case: values.word("guest_ignore_case", &flag)?,
            log: values.text("log")?,
            uid: sources.uid,
            file: sources.file.clone(),
            written: Vec::new(),
        };
        if config.tls.is_none() && !config.allow_plain_http && !config.listen.ip().is_loopback() {
            return Err(values.refuse(
                "listen",
                "passwords would go over the network unencrypted; set tls_certificate and \
                 tls_key, or allow_plain_http = true",
            ));
        }
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

    /// The words of a command line that make the same configuration in a process
    /// with the same environment and working directory.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        if let Some(file) = &self.file {
            arguments.extend([OsString::from("--config"), file.clone().into_os_string()]);
        }
        for (key, written) in &self.written {
            if matches!(written.origin, Origin::Flag(_)) {
                let mut word = OsString::from(format!("--{}=", key.flag));
                word.push(written.words.join(OsStr::new(":")));
                arguments.push(word);
            }
        }
        arguments
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
            DeValue::Integer(number)
                if number.radix() == 10 || (number.radix() == 8 && key.form == Form::Mode) =>
            {
                Ok(OsString::from(number.as_str()))
            }
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

#[cfg(test)]
mod tests;
