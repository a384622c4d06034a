//! The paths that a hostile client gives.

use super::support::http::{Api, encoded};

/// Values of `path`, as they stand in a query.
pub(crate) fn hostile_paths(api: &Api) -> Vec<String> {
    let ups = [
        "../",
        "/../",
        "..%2f",
        "%2e%2e/",
        "%2e%2e%2f",
        "%2E%2E%2F",
        ".%2e/",
        "%2e./",
        "./../",
        "/./../",
        "etc/../../",
        "nothing/../../",
        "links/../../",
        "links/root/../",
        "links/above/../../",
        "%252e%252e/",
        "%252e%252e%252f",
        "..%252f",
        "%25252e%25252e%25252f",
        "..%5c",
        "%2e%2e%5c",
        "..%5c/",
        "..%255c",
        "....//",
        "....%5c%5c",
        "..;/",
        ".../",
        "..%20/",
        "..%09/",
        "..%0a/",
        "..%0d%0a/",
        "..%00/",
        "%00../",
        "..%01/",
        "%c0%ae%c0%ae/",
        "%c0%ae%c0%ae%c0%af",
        "..%c0%af",
        "..%c1%9c",
        "%e0%80%ae%e0%80%ae/",
        "%f0%80%80%ae%f0%80%80%ae/",
        "%ef%bc%8e%ef%bc%8e/",
        "%ef%bc%8e%ef%bc%8e%ef%bc%8f",
        "..%ef%bc%8f",
        "%e2%80%a5/",
        "%u002e%u002e/",
        "%uff0e%uff0e/",
        "%5cx2e%5cx2e/",
        "%5cx2e%5cx2e%5cx2f",
        "..%5cx2f",
        "%5cxff/../../",
        "..%5cx5c",
        "&#46;&#46;/",
    ];
    let mut all = Vec::new();
    for up in ups {
        all.push(format!("{up}canary"));
        all.push(format!("{}canary", up.repeat(3)));
        all.push(format!("{}etc/passwd", up.repeat(12)));
    }
    let root = api.lab.path("").display().to_string();
    let root = root.trim_end_matches('/');
    for there in [
        "canary",
        "gate/canary",
        "gate/backups/vm",
        "state/catalog.db",
        "state/canary",
        "repository/canary",
        "sendense.toml",
    ] {
        all.push(format!("{root}/{there}"));
        all.push(format!("/{root}/{there}"));
        all.push(format!("file://{root}/{there}"));
        all.push(encoded(format!("{root}/{there}")).replace('/', "%2F"));
    }
    all.extend(
        [
            "..",
            "/..",
            "../",
            "%2e%2e",
            "..%2f",
            "../..",
            "%2e%2e%2f%2e%2e",
            "../disk1/secret",
            "../disk1",
            "../disk0",
            "../disk0.raw",
            "..%2fdisk1%2fsecret",
            "../../../other",
            "../../latest/disk1/secret",
            "disk1/secret",
            "secret",
            "vm/latest/disk1/secret",
            "/etc/passwd%00",
            "/etc/passwd%00.txt",
            "%00",
            "%00/etc/passwd",
            "/etc/pass%00wd",
            "/etc/passwd.",
            "/etc/passwd..",
            "/etc/passwd...",
            "/etc/passwd%20",
            "/etc/passwd::$DATA",
            "/etc/shadow",
            "/etc/hostname",
            "/proc/self/environ",
            "/proc/self/root/etc/passwd",
            "/proc/1/root",
            "/proc/self/fd/3",
            "/proc/thread-self/cwd",
            "/dev/fuse",
            "/dev/fd/3",
            "/dev/stdin",
            "/sys/kernel",
            "CON",
            "NUL",
            "COM1",
            "/aux",
            "PhysicalDrive0",
            "%5c%5c.%5cC:",
            "%5c%5c?%5cC:%5c",
            "%5c%5clocalhost%5cC$",
            "C:%5cWindows%5cwin.ini",
            "C:/",
            "~",
            "~root",
            "$HOME",
            "%25HOME%25",
            "|id",
            "`id`",
            "$(id)",
            "*",
            "?*",
            "{etc,links}",
            "/etc/passwd/",
            "/etc/passwd/x",
            "/etc/passwd/../../..",
            "/hostname/.",
            "/links/loop",
            "/links/loop/x",
            "/links/nothing",
            "/links/root",
            "/links/root/etc/passwd",
            "/links/above/..",
            "/links/above/../../canary",
            "/links/inside/..",
            "/deep/er/est/../../../../canary",
            "/dev/pipe/x",
            "/proc/..",
            "/./..",
            "/.//..",
            "//..",
            "///../",
            "/..//",
            "\u{202e}..",
            "%ff%fe",
            "%80",
            "%c3%28",
        ]
        .map(str::to_owned),
    );
    for n in 1..=28 {
        all.push(format!("/links/l{n}"));
        all.push(format!("/links/l{n}/etc/passwd"));
        all.push(format!("/links/l{n}/secret"));
    }
    all.push("../".repeat(1300) + "etc/passwd");
    all.push("a/".repeat(2047) + "..");
    all.push("x".repeat(300));
    all.push("x".repeat(5000));
    all.push("%2e%2e%2f".repeat(900));
    all
}
