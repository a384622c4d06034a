//! subvolumes
