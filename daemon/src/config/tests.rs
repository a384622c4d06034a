use super::*;

fn sources(environment: &[(&str, &str)], uid: u32) -> Sources {
    let environment = environment
        .iter()
        .map(|(n, v)| (OsString::from(n), OsString::from(v)))
        .collect();
    Sources {
        file: None,
        environment,
        flags: Overrides::default(),
        uid,
    }
}

fn with_file(text: &str, environment: &[(&str, &str)]) -> Result<Config> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sendense.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&Sources {
        file: Some(path),
        ..sources(environment, 0)
    })
}

/// Through clap, as the program does it.
fn flags(arguments: &[&str]) -> Overrides {
    use clap::{Args, FromArgMatches};
    let command = Overrides::augment_args(clap::Command::new("sendense"));
    let matches = command
        .try_get_matches_from([&["sendense"], arguments].concat())
        .unwrap();
    Overrides::from_arg_matches(&matches).unwrap()
}

#[test]
fn defaults_of_root_are_as_documented() {
    let config = Config::load(&sources(&[], 0)).unwrap();
    assert_eq!(config.mountpoint, Path::new("/srv/sendense/backups"));
    assert!(config.repositories.is_empty());
    assert_eq!(
        config.catalog_path(),
        Path::new("/var/lib/sendense/catalog.db")
    );
    assert_eq!(config.runtime_dir, Path::new("/run/sendense"));
    assert_eq!(config.slots, 8);
    assert_eq!(config.idle_timeout, Duration::from_secs(3600));
    assert_eq!(config.sweep_interval, Duration::from_secs(60));
    assert_eq!(config.cache_size, 64 << 20);
    assert_eq!(config.read_ahead, 1 << 20);
    assert!(config.xattrs);
    assert_eq!(config.guest_time_zone, jiff::tz::TimeZone::UTC);
    assert_eq!(config.listen.to_string(), "127.0.0.1:8082");
    assert_eq!(config.request_timeout, Duration::from_secs(30));
    assert_eq!(config.start_timeout, Duration::from_secs(10));
    assert_eq!(config.connections, 2);
    assert!(config.allows_other());
    assert_eq!(config.gate, GatePolicy::Enforce);
    assert_eq!(config.group, "sendense");
    assert_eq!(config.guest_owner, (0, 0));
    assert_eq!(config.guest_file_mode, 0o644);
    assert_eq!(config.guest_folder_mode, 0o755);
    assert!(!config.guest_ignore_case);
    assert_eq!(config.log, "info");
}

#[test]
fn an_ordinary_user_gets_folders_of_their_own() {
    let config = Config::load(&sources(&[("HOME", "/home/eve")], 1000)).unwrap();
    assert_eq!(
        config.state_dir,
        Path::new("/home/eve/.local/state/sendense")
    );
    assert_eq!(config.runtime_dir, Path::new("/run/user/1000/sendense"));
    assert!(!config.allows_other());
    let xdg = [
        ("HOME", "/home/eve"),
        ("XDG_STATE_HOME", "/s"),
        ("XDG_RUNTIME_DIR", "/r"),
    ];
    let config = Config::load(&sources(&xdg, 1000)).unwrap();
    assert_eq!(config.state_dir, Path::new("/s/sendense"));
    assert_eq!(config.runtime_dir, Path::new("/r/sendense"));
}

#[test]
fn flags_go_before_the_environment_before_the_file_before_defaults() {
    let file = "slots = 3\nidle_timeout = \"90s\"\ncache_size = \"8MiB\"\nxattrs = false\n";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, file).unwrap();
    let environment = [("SENDENSE_SLOTS", "4"), ("SENDENSE_IDLE_TIMEOUT", "5m")];
    let config = Config::load(&Sources {
        file: Some(path.clone()),
        flags: flags(&["--slots", "5"]),
        ..sources(&environment, 0)
    })
    .unwrap();
    assert_eq!(config.slots, 5);
    assert_eq!(config.idle_timeout, Duration::from_secs(300));
    assert_eq!(config.cache_size, 8 << 20);
    assert!(!config.xattrs);
    assert_eq!(config.connections, 2);
    assert_eq!(config.origin("slots"), &Origin::Flag("slots"));
    assert_eq!(
        config.origin("idle_timeout"),
        &Origin::Environment("SENDENSE_IDLE_TIMEOUT".to_owned())
    );
    assert_eq!(config.origin("cache_size"), &Origin::File(path, 3));
    assert_eq!(config.origin("connections"), &Origin::Default);
}

#[test]
fn lists_are_written_as_each_place_writes_them() {
    let wanted = [PathBuf::from("/a"), PathBuf::from("/b c")];
    let config = with_file("repositories = [\"/a\", \"/b c/\"]", &[]).unwrap();
    assert_eq!(config.repositories, wanted);
    let config = Config::load(&sources(&[("SENDENSE_REPOSITORIES", "/a:/b c")], 0)).unwrap();
    assert_eq!(config.repositories, wanted);
    let from_flags = flags(&["--repositories", "/a:/b c"]);
    let config = Config::load(&Sources {
        flags: from_flags,
        ..sources(&[], 0)
    })
    .unwrap();
    assert_eq!(config.repositories, wanted);
}

#[test]
fn what_people_write_is_understood() {
    for (text, seconds) in [("\"90s\"", 90), ("\"1h\"", 3600), ("\"1h 30m\"", 5400)] {
        let config = with_file(&format!("idle_timeout = {text}"), &[]).unwrap();
        assert_eq!(config.idle_timeout.as_secs(), seconds);
    }
    for (text, bytes) in [
        ("\"64MiB\"", 64 << 20),
        ("\"1 GiB\"", 1 << 30),
        ("2097152", 2 << 20),
    ] {
        let config = with_file(&format!("cache_size = {text}"), &[]).unwrap();
        assert_eq!(config.cache_size, bytes);
    }
    for (text, owner) in [
        ("1000:100", (1000, 100)),
        ("root:0", (0, 0)),
        ("0:daemon", (0, 1)),
        ("4294967294:7", (u32::MAX - 1, 7)),
    ] {
        let config = with_file(&format!("guest_owner = \"{text}\""), &[]).unwrap();
        assert_eq!(config.guest_owner, owner);
    }
    for text in ["\"0640\"", "\"640\"", "640", "0o640"] {
        let config = with_file(&format!("guest_file_mode = {text}"), &[]).unwrap();
        assert_eq!(config.guest_file_mode, 0o640);
    }
    assert_eq!(with_file("slots = 5000", &[]).unwrap().slots, 5000);
    assert_eq!(
        with_file("allow_other = true", &[]).unwrap().allow_other,
        AllowOther::Yes
    );
    assert_eq!(
        with_file("log = \"info,sendense=debug\"", &[]).unwrap().log,
        "info,sendense=debug"
    );
}

#[test]
fn what_is_wrong_is_refused_by_name_and_line() {
    let table = [
        ("slots = 0", "1: slots: must not be 0"),
        ("slots = -1", "1: slots: \"-1\" is not a whole number"),
        (
            "slots = 20000",
            "1: slots: 20000 is not between 1 and 10000",
        ),
        ("slots = 1.5", "1: slots: cannot be a float"),
        ("\n\nslots = [1]", "3: slots: must be one value"),
        (
            "cache_size = 0",
            "1: cache_size: must not be 0; at least 1.0 MiB",
        ),
        (
            "cache_size = \"1KiB\"",
            "1: cache_size: 1KiB is not between 1.0 MiB",
        ),
        (
            "cache_size = \"many\"",
            "1: cache_size: \"many\" is not a size",
        ),
        (
            "idle_timeout = 90",
            "1: idle_timeout: \"90\" is not a duration with its unit",
        ),
        (
            "idle_timeout = \"0s\"",
            "1: idle_timeout: must be longer than 0",
        ),
        (
            "idle_timeout = \"99999y\"",
            "1: idle_timeout: must not be longer than ten years",
        ),
        ("mountpoint = \"srv\"", "1: mountpoint: \"srv\" is relative"),
        (
            "mountpoint = \"/\"",
            "1: mountpoint: must not be the root folder",
        ),
        (
            "mountpoint = \"/srv/../etc\"",
            "1: mountpoint: \"/srv/../etc\" must not contain `..`",
        ),
        ("mountpoint = \"\"", "1: mountpoint: must not be empty"),
        ("repositories = \"/a\"", "1: repositories: must be a list"),
        (
            "repositories = [\"/a\", \"b\"]",
            "1: repositories: \"b\" is relative",
        ),
        (
            "gate = \"open\"",
            "1: gate: \"open\" is not one of enforce, warn",
        ),
        (
            "xattrs = \"perhaps\"",
            "1: xattrs: \"perhaps\" is not one of true, false",
        ),
        (
            "listen = \"8082\"",
            "1: listen: \"8082\" is not an address and a port",
        ),
        ("connections = 0", "1: connections: must not be 0"),
        (
            "read_ahead = \"1GiB\"",
            "1: read_ahead: 1GiB is not between 0 B and 16.0 MiB",
        ),
        (
            "guest_owner = 1000",
            "1: guest_owner: \"1000\" is not an owner; write USER:GROUP",
        ),
        (
            "guest_owner = \"nobody-here:0\"",
            "1: guest_owner: there is no user \"nobody-here\" on this host; write",
        ),
        (
            "guest_owner = \"0:-1\"",
            "1: guest_owner: there is no group \"-1\" on this host",
        ),
        (
            "guest_owner = \"4294967295:0\"",
            "1: guest_owner: there is no user \"4294967295\"",
        ),
        (
            "guest_file_mode = \"rw-r--r--\"",
            "1: guest_file_mode: \"rw-r--r--\" is not a mode; write it in octal",
        ),
        (
            "guest_file_mode = \"+644\"",
            "1: guest_file_mode: \"+644\" is not a mode",
        ),
        (
            "guest_folder_mode = 2755",
            "1: guest_folder_mode: \"2755\" is not a mode; write it in octal (0 to 0777)",
        ),
        ("guest_folder_mode = 0755", "1: "),
        (
            "guest_ignore_case = \"maybe\"",
            "1: guest_ignore_case: \"maybe\" is not one of true, false",
        ),
        (
            "log = \"loud=very\"",
            "1: log: \"loud=very\" is not a log filter",
        ),
        (
            "\nidle_timout = \"1h\"",
            "2: unknown key \"idle_timout\"; did you mean \"idle_timeout\"?",
        ),
        (
            "colour = 1",
            "1: unknown key \"colour\"; `sendense config --explain` lists them all",
        ),
        ("[section]\nslots = 1", "1: unknown key \"section\""),
        ("slots = 1\nslots = 2", "2: duplicate key"),
        ("slots = ", "1: "),
    ];
    for (text, wanted) in table {
        let error = with_file(text, &[]).map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("sendense.toml:{wanted}")),
            "{text}: {error}"
        );
        assert!(!error.contains('\n'), "{text}: {error}");
    }
}

#[test]
fn a_bad_variable_or_flag_is_refused_by_its_own_name() {
    let error = Config::load(&sources(&[("SENDENSE_SLOTS", "x")], 0))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("SENDENSE_SLOTS: \"x\" is not a whole number"),
        "{error}"
    );
    let bad = flags(&["--idle-timeout", "soon"]);
    let error = Config::load(&Sources {
        flags: bad,
        ..sources(&[], 0)
    })
    .unwrap_err()
    .to_string();
    assert!(error.starts_with("--idle-timeout: \"soon\""), "{error}");
    let error = Config::load(&sources(&[("SENDENSE_SLOT", "1")], 0))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("SENDENSE_SLOT; did you mean SENDENSE_SLOTS?"),
        "{error}"
    );
    // Somebody else's variable, and our own that is not a key.
    let others = [("SENDENSE_DEMO_FOLDER", "x"), ("SENDENSE_CONFIG", "/x")];
    Config::load(&sources(&others, 0)).unwrap();
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(&Sources {
        file: Some("/nowhere/c.toml".into()),
        ..sources(&[], 0)
    })
    .unwrap_err()
    .to_string();
    assert!(
        error.starts_with("/nowhere/c.toml: No such file"),
        "{error}"
    );
}

#[test]
fn what_is_printed_can_be_read_again() {
    let config = with_file("repositories = [\"/a\"]\nslots = 7\n", &[]).unwrap();
    let again = with_file(&config.to_toml(), &[]).unwrap();
    assert_eq!(again.slots, 7);
    assert_eq!(again.repositories, config.repositories);
    assert!(config.to_toml().contains("slots = 7"));
    assert!(
        config
            .to_toml()
            .lines()
            .any(|l| l.contains("slots") && l.ends_with("sendense.toml:2"))
    );

    // The explanation is a file of comments; with the values uncommented it is
    // the default configuration.
    let uncommented: String = explain()
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| {
            KEYS.iter()
                .any(|key| line.starts_with(&format!("{} = ", key.name)))
        })
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(uncommented.lines().count(), KEYS.len());
    let defaults = Config::load(&sources(&[], 0)).unwrap();
    let read = with_file(&uncommented, &[]).unwrap();
    assert_eq!(read.slots, defaults.slots);
    assert_eq!(read.idle_timeout, defaults.idle_timeout);
    assert!(
        explain()
            .lines()
            .all(|line| line.is_empty() || line.starts_with('#'))
    );
}

#[test]
fn a_time_zone_is_a_name_or_an_offset() {
    for zone in [
        "Europe/Berlin",
        "UTC",
        "+02:00",
        "-03:30",
        "America/New_York",
    ] {
        let config = with_file(&format!("guest_time_zone = \"{zone}\""), &[]).unwrap();
        assert_eq!(
            config.guest_time_zone,
            sendense::filesystem::parse_time_zone(zone).unwrap()
        );
    }
    for wrong in ["Berlin", "Europe/Berlim", "+99:00", "2", "CEST"] {
        let error = with_file(&format!("guest_time_zone = \"{wrong}\""), &[]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("guest_time_zone"), "{error}");
        assert!(error.contains("Europe/Berlin"), "{error}");
        assert!(error.contains("+02:00"), "{error}");
    }
    let error = with_file("", &[("SENDENSE_GUEST_TIME_ZONE", "Nowhere")]);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("SENDENSE_GUEST_TIME_ZONE"), "{error}");
}

/// The same configuration in a child: the file and the flags go as arguments, the
/// environment is inherited.
#[test]
fn a_child_has_the_same_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("my config.toml");
    std::fs::write(&file, "slots = 3\ngroup = \"one\"\n").unwrap();
    let given = flags(&[
        "--group=--serve",
        "--repositories",
        "/a b:/c:/d",
        "--idle-timeout",
        "5s",
    ]);
    let load = |file: PathBuf, flags: Overrides| {
        Config::load(&Sources {
            file: Some(file),
            flags,
            ..sources(&[("SENDENSE_CONNECTIONS", "4")], 0)
        })
        .unwrap()
    };
    let parent = load(file.clone(), given);
    let arguments = parent.arguments();
    assert_eq!(arguments[0], "--config");
    let words: Vec<&str> = arguments[2..].iter().map(|w| w.to_str().unwrap()).collect();
    let child = load(arguments[1].clone().into(), flags(&words));
    assert_eq!(child.to_toml(), parent.to_toml());
    assert_eq!(child.repositories.len(), 3);
    assert_eq!(child.group, "--serve");
}
