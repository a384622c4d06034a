//! What `cp` shows while it works: a bar on a terminal, lines elsewhere.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use crate::terminal;

/// How often a line is written where no bar can be drawn.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How much there is to do, counted while the copy is already under way.
#[derive(Debug, Default)]
pub(crate) struct Total {
    /// Sum of the sizes of the files found so far.
    pub(crate) bytes: AtomicU64,
    /// Files found so far.
    pub(crate) files: AtomicU64,
    /// Whether all were found.
    pub(crate) complete: AtomicBool,
}

/// The progress of one `cp`.
pub(crate) struct Progress<'t> {
    bar: Option<ProgressBar>,
    /// Where lines are written: when the last one was.
    line: Option<Instant>,
    total: &'t Total,
    bytes: u64,
    files: u64,
}

impl<'t> Progress<'t> {
    /// Shows a bar (`bar`), lines (`lines`), or nothing.
    pub(crate) fn new(bar: bool, lines: bool, total: &'t Total) -> Self {
        let bar = bar.then(|| {
            let bar = ProgressBar::no_length();
            bar.enable_steady_tick(Duration::from_millis(250));
            bar.set_style(growing());
            bar
        });
        let line = (lines && bar.is_none()).then(Instant::now);
        Self {
            bar,
            line,
            total,
            bytes: 0,
            files: 0,
        }
    }

    /// So many bytes of a file are done, holes included.
    pub(crate) fn bytes(&mut self, count: u64) {
        self.bytes = self.bytes.saturating_add(count);
        self.show();
    }

    /// A file is done.
    pub(crate) fn file(&mut self) {
        self.files = self.files.saturating_add(1);
        self.show();
    }

    /// Says a sentence on standard error without spoiling the bar.
    pub(crate) fn complain(&self, sentence: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| terminal::complain(sentence)),
            None => terminal::complain(sentence),
        }
    }

    fn show(&mut self) {
        if let Some(bar) = &self.bar {
            if bar.length().is_none() && self.total.complete.load(Ordering::Acquire) {
                bar.set_length(self.total.bytes.load(Ordering::Relaxed));
                bar.set_style(whole());
            }
            bar.set_position(self.bytes);
            bar.set_message(self.count());
        }
        if self.line.is_some_and(|last| last.elapsed() >= LINE_EVERY) {
            self.line = Some(Instant::now());
            terminal::complain(&self.sentence());
        }
    }

    fn count(&self) -> String {
        let done = HumanCount(self.files);
        if self.total.complete.load(Ordering::Acquire) {
            format!(
                "{done} of {} files",
                HumanCount(self.total.files.load(Ordering::Relaxed))
            )
        } else {
            format!("{done} files")
        }
    }

    fn sentence(&self) -> String {
        format!("{} in {}", HumanBytes(self.bytes), self.count())
    }

    /// Takes the bar away, or writes a last line.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if self.line.take().is_some() {
            terminal::complain(&format!("copied {}", self.sentence()));
        }
    }
}

fn growing() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {bytes} {msg} {binary_bytes_per_sec} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn whole() -> ProgressStyle {
    ProgressStyle::with_template(
        "{bar:30} {percent:>3} % {bytes} of {total_bytes}, {msg} {binary_bytes_per_sec} {eta} left",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
}
