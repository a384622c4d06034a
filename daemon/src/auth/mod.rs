//! Who somebody is: passwords, tokens, and how often one may guess.
//!
//! Nothing here knows of HTTP or of the catalog: passwords and tokens are checked
//! by what is handed in, so that each check can be tested for itself.
//!
//! - [`password`]: argon2id, a few at a time;
//! - [`token`]: what a client shows at each request;
//! - [`attempts`]: failures by account and address.

pub(crate) mod attempts;
pub(crate) mod password;
pub(crate) mod token;
