//! Models, adapters and data sets from the Hugging Face Hub.
//!
//! The only crate that opens a connection. It does so when a function of it is called and at no other
//! time, and knows nothing of tensors, recipes or energy. Its parts, in the order in which a file travels:
//!
//! - [`settings`]: where the Hub is, where files lie here, who asks
//! - [`name`]: `owner/name`, kinds, revisions
//! - [`hub`]: what is asked of a Hub, as a trait, and the Hub behind its HTTP routes
//! - [`select`]: which of a repository's files are needed
//! - [`fetch`](mod@fetch): from the Hub into the cache that Python's `huggingface_hub` uses too
//! - [`publish`]: files to a repository, as one commit
//! - [`grid`]: how clean the electricity is now, for runs that wait; nothing of the Hub
//! - [`digest`]: the checksums files are named by
//! - [`error`]: what can go wrong, and what to do about it

mod cache;
mod data_files;
pub mod digest;
mod download;
pub mod error;
pub mod fetch;
pub mod grid;
mod http;
pub mod hub;
pub mod name;
pub mod publish;
pub mod select;
pub mod settings;

pub use data_files::Split;
pub use error::HubError;
pub use fetch::{Fetched, Observer, Plan, fetch};
pub use hub::{Hub, Listing, RemoteFile, Server, Stream};
pub use name::{Kind, Repo, is_name};
pub use select::Need;
pub use settings::{Settings, Token};
