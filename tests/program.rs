//! The program's other commands: reading without a mount, status, doctor, running
//! as an ordinary user.
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::facts::{self, facts};
use support::images::{RawDisk, full, varied_tree};
use support::{Daemon, Lab, assert_same, shell, succeeded, wait_for};

fn one_backup() -> (Lab, RawDisk) {
    let lab = Lab::new();
    lab.configure("");
    let disk = RawDisk::ext4(lab.path("work/a.raw"), "200M", &[]);
    disk.write(|root| {
        varied_tree(root);
        std::os::unix::fs::symlink("../etc", root.join("etc/link")).unwrap();
    });
    full(&lab, &disk.path, "vm", 0, "20251008-192431");
    lab.scan();
    (lab, disk)
}

/// `sendense cp` without a mount keeps what `cp -a` keeps.
#[test]
fn copies_without_a_mount_are_whole() {
    let (lab, disk) = one_backup();
    // The target has to be able to hold it all: dates up to 2446, every xattr.
    let target = RawDisk::ext4(lab.path("work/target.raw"), "400M", &["-I 256"]);
    target.write(|mount| {
        let to = mount.join("copy");
        succeeded(lab.sendense([
            "cp".as_ref(),
            "-a".as_ref(),
            "vm/latest/disk0".as_ref(),
            to.as_os_str(),
        ]));
        let truth = disk.truth(facts);
        assert_same(
            &facts::kept_by_a_copy(truth),
            &facts::kept_by_a_copy(facts(&to)),
        );
        let sparse = fs::metadata(to.join("var/sparse")).unwrap();
        assert!(
            std::os::unix::fs::MetadataExt::blocks(&sparse) < 1000,
            "holes are kept"
        );
    });
    assert!(
        fs::read_dir(lab.path("run")).unwrap().next().is_none(),
        "nothing is left in the runtime folder"
    );
}

#[test]
fn ls_and_cat_read_without_a_mount() {
    let (lab, disk) = one_backup();
    assert_eq!(lab.sendense_ok(["ls"]).trim(), "vm");
    assert!(lab.sendense_ok(["ls", "vm"]).contains("latest"));
    let names = lab.sendense_ok(["ls", "vm/latest/disk0/etc"]);
    assert_eq!(
        names.lines().collect::<Vec<_>>(),
        [
            "deep",
            "hard1",
            "hostname",
            "link",
            "soft",
            "soft-absolute",
            "soft-long"
        ]
    );
    assert_eq!(
        lab.sendense_ok(["cat", "vm/latest/disk0/etc/hostname"]),
        "hello\n"
    );
    let long = lab.sendense_ok(["ls", "-l", "vm/latest/disk0/etc"]);
    assert!(
        long.contains("-rwsr") && long.contains("soft -> hostname"),
        "{long}"
    );
    let sum = shell(&format!(
        "{:?} --config {:?} cat vm/latest/disk0/var/random | sha256sum",
        env!("CARGO_BIN_EXE_sendense"),
        lab.config()
    ));
    let truth = disk.truth(|root| support::facts::sha256(&root.join("var/random")));
    assert_eq!(sum.split(' ').next().unwrap(), truth);
    let missing = lab.sendense(["cat", "vm/latest/disk0/no/such/file"]);
    assert!(!missing.status.success());
    let said = String::from_utf8(missing.stderr).unwrap();
    assert!(
        said.matches("no/such/file").count() == 1 && said.contains("not found"),
        "{said}"
    );
    // Of a path through a link it is said where the link leads.
    let linked = lab.sendense(["cat", "vm/latest/disk0/etc/link/hostname"]);
    assert!(!linked.status.success());
    let said = String::from_utf8(linked.stderr).unwrap();
    assert!(said.contains("a link to ../etc"), "{said}");
}

#[test]
fn status_and_release_tell_what_is_attached() {
    let (lab, _disk) = one_backup();
    let said = lab.sendense(["status"]);
    assert!(!said.status.success());
    assert!(
        String::from_utf8_lossy(&said.stderr).contains("not running"),
        "{said:?}"
    );
    let daemon = Daemon::start(&lab);
    fs::read(lab.mountpoint().join("vm/latest/disk0/var/random")).unwrap();
    let status: serde_json::Value =
        serde_json::from_str(&lab.sendense_ok(["status", "--json"])).unwrap();
    let disk = &status["attached"][0];
    assert!(
        disk["path"].as_str().unwrap().starts_with("vm/backup-vm-"),
        "{status}"
    );
    assert!(
        disk["bytes_read"].as_u64().unwrap() >= 3_000_000,
        "{status}"
    );
    assert_eq!(disk["qemu_nbd_pid"], daemon.qemu_nbds()[0]);
    let text = lab.sendense_ok(["status"]);
    assert!(text.contains("disk0"), "{text}");
    lab.sendense_ok(["release", "vm/latest/disk0"]);
    wait_for("the release", Duration::from_secs(5), || {
        daemon.qemu_nbds().is_empty()
    });
    let again = lab.sendense(["release", "vm/latest/disk0"]);
    assert!(!again.status.success());
    let second = lab.sendense(["serve"]);
    assert!(!second.status.success());
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("already running"),
        "{second:?}"
    );
}

/// > `serve` refuses to mount where every user of the host could read all backups.
#[test]
fn an_open_gate_is_refused() {
    let (lab, _disk) = one_backup();
    let gate = lab.path("gate");
    // The temporary folder itself is closed to others; open all of it.
    for open in [lab.dir.path(), &gate] {
        fs::set_permissions(open, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let said = lab.sendense(["serve"]);
    assert!(!said.status.success());
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(
        said.contains("every user") && said.contains("install -d -m 0750"),
        "{said}"
    );
    let doctor = lab.sendense(["doctor"]);
    assert!(
        String::from_utf8_lossy(&doctor.stdout).contains("every user"),
        "{doctor:?}"
    );
}

#[test]
fn a_mountpoint_that_overlaps_a_repository_is_refused() {
    let (lab, _disk) = one_backup();
    let inside = lab.path("repository/tree");
    let said = lab.sendense([
        "--mountpoint".as_ref(),
        inside.as_os_str(),
        "serve".as_ref(),
    ]);
    assert!(!said.status.success());
    assert!(
        String::from_utf8_lossy(&said.stderr).contains("overlap"),
        "{said:?}"
    );
}

/// An ordinary user, with fusermount3 and nothing else.
#[test]
fn an_ordinary_user_can_serve() {
    let (lab, _disk) = one_backup();
    let home = tempfile::Builder::new()
        .prefix("sendense-user-")
        .tempdir_in("/var/tmp")
        .unwrap();
    let at = |sub: &str| home.path().join(sub);
    shell(&format!(
        "id sendense-test >/dev/null 2>&1 || useradd --system --no-create-home sendense-test
         cp -a {:?} {:?}; mkdir {:?} {:?} {:?}; chown -R sendense-test {:?}; chmod 755 {:?}",
        lab.path("repository"),
        at("repository"),
        at("state"),
        at("run"),
        at("backups"),
        home.path(),
        home.path()
    ));
    let program = at("sendense");
    // By another process: a file that a child of another test has open for writing
    // cannot be run.
    shell(&format!(
        "cp {:?} {program:?}",
        env!("CARGO_BIN_EXE_sendense")
    ));
    fs::write(
        at("sendense.toml"),
        format!(
            "mountpoint = {:?}\nrepositories = [{:?}]\nstate_dir = {:?}\nruntime_dir = {:?}\nallow_other = false\n",
            at("backups"), at("repository"), at("state"), at("run")
        ),
    )
    .unwrap();
    let as_user = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=sendense-test",
            "--regid=sendense-test",
            "--clear-groups",
            "--",
        ]);
        command
            .arg(&program)
            .arg("--config")
            .arg(at("sendense.toml"))
            .args(args);
        command.stdin(Stdio::null());
        command
    };
    succeeded(
        as_user(&["catalog", "scan", at("repository").to_str().unwrap()])
            .output()
            .unwrap(),
    );
    let mut serve = as_user(&["serve"]).spawn().unwrap();
    let read = |path: &Path| {
        let script = format!("cat {path:?}");
        Command::new("setpriv")
            .args([
                "--reuid=sendense-test",
                "--regid=sendense-test",
                "--clear-groups",
                "--",
                "sh",
                "-c",
                &script,
            ])
            .output()
            .unwrap()
    };
    let file = at("backups").join("vm/latest/disk0/etc/hostname");
    wait_for("the tree", Duration::from_secs(10), || {
        read(&file).stdout == b"hello\n"
    });
    // Modes of the guest are shown and not enforced.
    let mut secret = read(&at("backups").join("vm/latest/disk0/etc/deep/old"));
    assert!(secret.status.success(), "{secret:?}");
    secret.stdout.clear();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(serve.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(serve.wait().unwrap().success());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts.contains(&*at("backups").to_string_lossy()),
        "{mounts}"
    );
}

/// A destination that the guest's tree would lead out of is not left.
#[test]
fn a_copy_never_leaves_its_destination() {
    let lab = Lab::new();
    lab.configure("");
    let disk = RawDisk::ext4(lab.path("work/a.raw"), "32M", &[]);
    let outside = lab.path("work/outside");
    fs::create_dir(&outside).unwrap();
    disk.write(|root| {
        shell(&format!(
            "cd {root:?}; mkdir d; echo guest > d/file; ln -s {outside:?} link"
        ));
    });
    full(&lab, &disk.path, "vm", 0, "20251008-192431");
    lab.scan();
    // Where the folder `d` has to go there is a symlink already.
    let to = lab.path("work/to");
    fs::create_dir(&to).unwrap();
    std::os::unix::fs::symlink(&outside, to.join("disk0")).unwrap();
    let said = lab.sendense([
        "cp".as_ref(),
        "-a".as_ref(),
        "vm/latest/disk0".as_ref(),
        to.as_os_str(),
    ]);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{said:?}");
}
