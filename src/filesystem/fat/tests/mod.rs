#![allow(clippy::arithmetic_side_effects, reason = "a test may panic")]
