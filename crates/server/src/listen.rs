//! The server itself: it listens, hands requests to the routes, and ends in good order.

use crate::app::App;
use crate::client::Client;
use crate::error::{ApiError, Kind};
use crate::options::Options;
use crate::routes::routes;
use crate::{ServeError, body, guard, log};
use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, Request, header};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tangor_store::Store;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

/// Threads that move bytes; models have threads of their own.
const THREADS: usize = 4;
/// After the system refused a connection, as when there are too many files open.
const BREATH: Duration = Duration::from_millis(50);
/// When the grace is over, until connections on which the last words are not read are left behind.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// A server that has its address, and serves when it is run.
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
    address: SocketAddr,
}

/// Ends a server, from any thread.
#[derive(Clone)]
pub struct Stopper(Arc<App>);

impl Stopper {
    /// Ends the server: it takes no more requests, and returns when those it has are answered or
    /// the grace of its limits is over.
    pub fn stop(&self) {
        self.0.stop();
    }
}

impl std::fmt::Debug for Stopper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stopper").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Takes the address.
    ///
    /// # Errors
    /// [`ServeError::Exposed`] if other machines could reach it without a key;
    /// [`ServeError::Address`] if the system does not give it.
    pub fn bind(options: Options, store: Store) -> Result<Self, ServeError> {
        if !options.address.ip().is_loopback() && options.key.is_none() {
            return Err(ServeError::Exposed(options.address.ip()));
        }
        let refused = |error: std::io::Error| ServeError::Address {
            address: options.address,
            why: error.kind().to_string(),
        };
        let listener = TcpListener::bind(options.address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Self { app: Arc::new(App::new(options, store)), listener, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What ends it.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.app))
    }

    /// Serves until it is stopped; `ready` is called when the models that were named are loaded.
    ///
    /// # Errors
    /// [`ServeError::Model`] if one of them cannot be loaded; [`ServeError::System`].
    pub fn run(self, ready: impl FnOnce() + Send + 'static) -> Result<(), ServeError> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.min(THREADS))
            .thread_name("tangor-server")
            .enable_all()
            .build()
            .map_err(|error| ServeError::System(error.to_string()))?;
        let result = runtime.block_on(self.serve(ready));
        // What hangs is left behind.
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    }

    async fn serve(self, ready: impl FnOnce() + Send + 'static) -> Result<(), ServeError> {
        let Self { app, listener, .. } = self;
        let listener = tokio::net::TcpListener::from_std(listener)
            .map_err(|error| ServeError::System(error.to_string()))?;
        let service = TowerToHyperService::new(router(Arc::clone(&app)));
        let preload = tokio::spawn(preload(Arc::clone(&app), ready));
        let (graceful, mut stopping) = (GracefulShutdown::new(), app.stopping());
        let places = Arc::new(Semaphore::new(app.limits().connections));
        loop {
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place.ok(), listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => break,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((stream, client)) => {
                    let client = Client(client.ip());
                    connect(&app, (stream, client), service.clone(), &graceful, place);
                }
                Err(_) => tokio::time::sleep(BREATH).await,
            }
        }
        drop(listener);
        let mut over = pin!(graceful.shutdown());
        if tokio::time::timeout(app.limits().grace, &mut over).await.is_err() {
            app.abort();
            // Streams say so and end; who does not read that is not waited for.
            let _ = tokio::time::timeout(LAST_WORDS, over).await;
        }
        app.residents.clear();
        match preload.is_finished() {
            true => preload.await.unwrap_or(Ok(())),
            false => Ok(()),
        }
    }
}

/// Loads the models that the server was started with, as many as may be in memory; one that cannot
/// be loaded ends it.
async fn preload(app: Arc<App>, ready: impl FnOnce()) -> Result<(), ServeError> {
    // The first one is to be the one that was used last.
    let served = app.catalog.served().take(app.residents.most());
    let names: Vec<String> = served.map(str::to_owned).collect();
    for name in names.iter().rev() {
        if let Err(error) = app.model(Some(name)).await {
            app.stop();
            return Err(ServeError::Model { model: name.clone(), why: error.to_string() });
        }
    }
    app.set_ready();
    ready();
    Ok(())
}

/// Serves a connection.
fn connect(
    app: &App,
    (stream, client): (TcpStream, Client),
    service: TowerToHyperService<Router>,
    graceful: &GracefulShutdown,
    place: Option<OwnedSemaphorePermit>,
) {
    let limits = app.limits();
    // Small pieces of text are to arrive when they are written. Not having that is no error.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(client);
        service.call(request)
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.write_stall));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .max_buf_size(limits.head_bytes.max(8192))
        .max_headers(limits.headers)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        // A client that left, or was too slow, has cancelled what it asked for.
        let _ = connection.await;
        drop(place);
    });
}

/// Every route, and what stands before it.
pub(crate) fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for route in routes() {
        let door = from_fn_with_state((Arc::clone(&app), route.facts), guard::door);
        let handler = route.handler.layer(door);
        for prefix in route.facts.base.prefixes() {
            router = router.route(&format!("{prefix}{}", route.facts.path), handler.clone());
        }
    }
    let nowhere = || async { ApiError::new(Kind::NotFound, "there is no such route") };
    let method = || async { ApiError::new(Kind::Method, "this route has another method") };
    let cors = cors(&app.options.origins);
    router
        .fallback(nowhere)
        .method_not_allowed_fallback(method)
        .layer(map_response(plainly))
        .layer(cors)
        .layer(from_fn_with_state(Arc::clone(&app), guard::place))
        .layer(from_fn(body::to_its_end))
        .layer(from_fn_with_state(Arc::clone(&app), log::record))
        .with_state(app)
}

/// What every response says.
async fn plainly(mut response: Response) -> Response {
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

/// Lets pages of listed origins read answers.
fn cors(origins: &[String]) -> CorsLayer {
    if origins.is_empty() {
        return CorsLayer::new();
    }
    let any = origins.iter().any(|origin| origin == "*");
    let allowed = match any {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().filter_map(|origin| origin.parse().ok())),
    };
    // Official clients send headers of their own, as `x-stainless-…`: what a page that may ask
    // wants to send, it may.
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods(AllowMethods::list([Method::GET, Method::POST, Method::DELETE]))
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER, HeaderName::from_static("x-request-id")])
}
