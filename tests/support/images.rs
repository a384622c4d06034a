//! Disks written by the real mkfs and the real kernel, and backups made of them.

use std::path::{Path, PathBuf};

use super::{Lab, run, shell};

/// A raw disk image with one ext file system from byte `offset` on.
pub struct RawDisk {
    pub path: PathBuf,
    offset: u64,
}

impl RawDisk {
    /// An ext file system on the whole of a fresh disk.
    pub fn ext4(path: PathBuf, size: &str, options: &[&str]) -> Self {
        run("truncate", ["-s".as_ref(), size.as_ref(), path.as_os_str()]);
        let options = options.join(" ");
        shell(&format!("mkfs.ext4 -q -F {options} {path:?}"));
        Self { path, offset: 0 }
    }

    /// A file system that is there already, at a byte offset.
    pub fn at(path: &Path, offset: u64) -> Self {
        Self {
            path: path.to_owned(),
            offset,
        }
    }

    /// Mounts it for writing while `work` runs.
    pub fn write(&self, work: impl FnOnce(&Path)) {
        self.mounted("rw", work);
    }

    /// Mounts it as a backup of it has to be seen: nothing is written, the
    /// journal is left alone.
    pub fn truth<T>(&self, work: impl FnOnce(&Path) -> T) -> T {
        self.mounted("ro,noload", work)
    }

    fn mounted<T>(&self, options: &str, work: impl FnOnce(&Path) -> T) -> T {
        let mount = KernelMount::new(&self.path, self.offset, options);
        work(mount.dir.path())
    }
}

/// A loop mount by the kernel, undone on drop.
pub struct KernelMount {
    pub dir: tempfile::TempDir,
    device: String,
}

impl KernelMount {
    pub fn new(image: &Path, offset: u64, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ro = if options.starts_with("ro") { "-r" } else { "" };
        let device = shell(&format!("losetup --show -f {ro} -o {offset} {image:?}"));
        // From here on it is given back, also where mounting fails.
        let mount = Self {
            dir,
            device: device.trim().to_owned(),
        };
        shell(&format!(
            "mount -t ext4 -o {options} {} {:?}",
            mount.device,
            mount.dir.path()
        ));
        mount
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        // A process that another test is just starting may still hold its files.
        for _ in 0..200 {
            let umount = std::process::Command::new("umount")
                .arg(self.dir.path())
                .output();
            if umount.is_ok_and(|output| output.status.success()) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = std::process::Command::new("losetup")
            .args(["-d", &self.device])
            .status();
    }
}

/// Where the layout of a repository puts an image.
pub fn layout(lab: &Lab, vm: &str, disk: u32, stamp: &str) -> PathBuf {
    let dir = lab.path(format!(
        "repository/ctx-backup-{vm}-20251006-203401/disk-{disk}"
    ));
    std::fs::create_dir_all(&dir).unwrap();
    dir.join(format!("backup-{vm}-disk{disk}-{stamp}.qcow2"))
}

/// A full backup of a raw disk.
pub fn full(lab: &Lab, raw: &Path, vm: &str, disk: u32, stamp: &str) -> PathBuf {
    let image = layout(lab, vm, disk, stamp);
    shell(&format!(
        "qemu-img convert -f raw -O qcow2 {raw:?} {image:?}"
    ));
    image
}

/// An incremental backup of a raw disk: only what differs from `parent`.
pub fn incremental(
    lab: &Lab,
    raw: &Path,
    vm: &str,
    disk: u32,
    stamp: &str,
    parent: &Path,
) -> PathBuf {
    let image = layout(lab, vm, disk, stamp);
    shell(&format!(
        "qemu-img convert -f raw -O qcow2 -B {parent:?} -F qcow2 {raw:?} {image:?}"
    ));
    image
}

/// A tree with all that a file can be. `root` is on a file system of the kernel;
/// what an older format cannot hold (preallocation, large attributes) is left out,
/// and what it bends (dates after 2038) is the truth all the same.
pub fn varied_tree(root: &Path) {
    shell(&format!(
        r#"
cd {root:?}
mkdir -p etc/deep/er/est home/user var/log 'with space' $'new\nline' empty
echo hello > etc/hostname
echo 'raw bytes' > $'home/user/\xff\xfe-not-utf8'
printf 'x%.0s' $(seq 1 255) | xargs -I{{}} touch home/user/{{}}
ln etc/hostname etc/hard1; ln etc/hostname home/user/hard2
ln -s hostname etc/soft; ln -s /absolute/target etc/soft-absolute
ln -s "$(printf 'l%.0s' $(seq 1 200))" etc/soft-long
mkfifo var/pipe; mknod var/null c 1 3; mknod var/disk b 259 1000000
python3 -c "import socket; socket.socket(socket.AF_UNIX).bind('var/socket')"
head -c 3000000 /dev/urandom > var/random
truncate -s 100M var/sparse; echo middle | dd of=var/sparse bs=1 seek=50000000 conv=notrunc status=none
echo end | dd of=var/sparse bs=1 seek=104857590 conv=notrunc status=none
fallocate -l 1M var/unwritten 2>/dev/null || truncate -s 1M var/unwritten; echo start | dd of=var/unwritten conv=notrunc status=none
for i in $(seq 0 2 400); do dd if=/dev/urandom of=var/fragmented bs=4k count=1 seek=$i conv=notrunc status=none; done
chmod 4755 etc/hostname; chmod 1777 var/log; chown 1000:1001 home/user
setfattr -n user.comment -v 'a comment' etc/hostname
setfattr -n user.binary -v 0x00ff0102 home/user
setfattr -n trusted.t -v 1 etc/deep
setfattr -n security.s -v 2 etc/deep
setfattr -n user.large -v "$(head -c 3000 /dev/zero | tr '\0' v)" var/random 2>/dev/null || true
setfacl -m u:1000:rw,g:1001:r etc/hostname; setfacl -d -m u:1000:rwx etc/deep
touch -d '1950-01-02 03:04:05.123456789 UTC' etc/deep/old
touch -d '2100-01-02 03:04:05.987654321 UTC' etc/deep/new
touch -d '2446-01-01 00:00:00.5 UTC' etc/deep/er/last
chmod 0 etc/deep/old
"#
    ));
}

/// A backup of btrfs, which notices that a byte is another one: at the beginning of the
/// file `start`, and at 2,000,000 of the 4,000,000 in `middle`.
pub fn flipped(lab: &Lab, vm: &str, stamp: &str) {
    let folder = lab.path(format!("work/{vm}.d"));
    std::fs::create_dir(&folder).unwrap();
    let mut content = vec![0u8; 4_000_000];
    content
        .iter_mut()
        .zip((0..=255u8).cycle())
        .for_each(|(to, from)| *to = from);
    content[2_000_000..2_000_016].copy_from_slice(b"MARK OF THE TEST");
    std::fs::write(folder.join("middle"), &content).unwrap();
    content[2_000_000..2_000_016].fill(1);
    content[..16].copy_from_slice(b"MARK OF THE TEST");
    std::fs::write(folder.join("start"), &content).unwrap();
    let raw = lab.path(format!("work/{vm}.raw"));
    shell(&format!(
        "truncate -s 128M {raw:?}; mkfs.btrfs -q --rootdir {folder:?} {raw:?} >/dev/null"
    ));
    let found = shell(&format!(
        "grep -abo 'MARK OF THE TEST' {raw:?} | cut -d: -f1"
    ));
    let file = std::fs::OpenOptions::new().write(true).open(&raw).unwrap();
    assert!(found.lines().count() >= 2);
    for offset in found.lines() {
        std::os::unix::fs::FileExt::write_at(&file, b"m", offset.parse().unwrap()).unwrap();
    }
    full(lab, &raw, vm, 0, stamp);
}
