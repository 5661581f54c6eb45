//! Who asks.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Client(pub(crate) IpAddr);

tokio::task_local! {
    /// Whose request a task answers.
    static CLIENT: Option<Client>;
}

impl Client {
    /// Does something for this client.
    pub(crate) async fn scope<T>(this: Option<Self>, work: impl Future<Output = T>) -> T {
        CLIENT.scope(this, work).await
    }

    /// Whose request this task answers.
    pub(crate) fn current() -> Option<Self> {
        CLIENT.try_with(|client| *client).unwrap_or(None)
    }
}

/// Who takes turns with others, as the engine wants it named: a machine, and whom it asks for, if
/// it says so.
pub(crate) fn number(user: Option<&str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (Client::current(), user).hash(&mut hasher);
    hasher.finish()
}
