//! `sendense`: every backup of every virtual machine as a folder.
//!
//! This file knows the commands and nothing else: it reads the command line and
//! the configuration, hands over to one module per command, and turns whatever
//! comes back into one sentence and an exit code (0: done; 1: failed, or failed
//! in part; 2: wrong usage; 130: interrupted).

mod browse;
mod cat_command;
mod config;
mod control;
mod destination;
mod gate;
mod logging;
mod ls_command;
mod signals;
mod terminal;
fn main() {}
