//! The one module that may use `unsafe`: system calls that no safe wrapper
//! offers. Each use says why it is sound.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc;

type Spawn = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts `command` as a child that the kernel kills (SIGKILL) when this process
/// ends, however it ends.
///
/// The signal is tied to the *thread* that forked, so one thread that lives as
/// long as the process does all the forking.
///
/// # Errors
/// What `Command::spawn` says.
pub fn spawn_bound(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<io::Result<mpsc::Sender<Spawn>>> = OnceLock::new();
    let parent = nix::unistd::getpid();
    // SAFETY: the closure runs between fork and exec and calls only prctl,
    // getppid, _exit and close_range, which are async-signal-safe, and allocates
    // nothing. close_range closes nothing here: it marks what is to be closed.
    unsafe {
        command.pre_exec(move || {
            nix::libc::prctl(nix::libc::PR_SET_PDEATHSIG, nix::libc::SIGKILL);
            // The parent may have died before the call above.
            if nix::libc::getppid() != parent.as_raw() {
                nix::libc::_exit(127);
            }
            // What this process was started with, by a shell or a supervisor, is
            // not the child's business. A kernel older than 5.11 leaves it open.
            let (first, last) = (3_u32, u32::MAX);
            nix::libc::syscall(
                nix::libc::SYS_close_range,
                first,
                last,
                nix::libc::CLOSE_RANGE_CLOEXEC,
            );
            Ok(())
        });
    }
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Spawn>();
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, reply) in receiver {
                    // Whoever asked may have given up; the child dies with its handle's owner.
                    let _ = reply.send(command.spawn());
                }
            })?;
        Ok(sender)
    });
    let gone = || io::Error::other("the thread that starts child processes is gone");
    let spawner = spawner
        .as_ref()
        .map_err(|e| io::Error::new(e.kind(), e.to_string()))?;
    let (reply, answer) = mpsc::channel();
    spawner.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// Makes the allocator share one heap between all threads. By default each new
/// thread may take a heap of its own, and every attached disk has threads.
pub fn share_heap() {
    // SAFETY: mallopt only sets a parameter of glibc's allocator; called before
    // other threads start, as its documentation asks.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}

/// Makes the allocator give blocks of a mebibyte and more back to the system as soon as
/// they are freed. By default it learns from the first of them to keep them, in each of
/// its heaps: what hashes passwords would grow by gigabytes.
pub fn return_large_blocks() {
    // SAFETY: mallopt only sets a parameter of glibc's allocator; called before
    // other threads start, as its documentation asks.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}

/// Gives memory that the allocator keeps for later back to the system.
pub fn trim_memory() {
    // SAFETY: malloc_trim has no preconditions and is thread-safe in glibc.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Reads entries of an open folder into `buffer` and says how many bytes they are:
/// a number of `struct linux_dirent64`, none at the end of the folder. Neither the
/// standard library nor nix gives the position that each entry has.
///
/// # Errors
/// As getdents(2).
pub fn read_directory(folder: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes no more than the length it is given, into memory that
    // is borrowed for us alone. Any bytes are valid there.
    let length = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_getdents64,
            folder.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}
