//! A client of this server's own API, for the command line: plain HTTP and JSON on the API address.
//!
//! Fails with [`Failure`], which knows its exit status: 1 the request failed, 2 usage, 3 the server can't be reached.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::output::waited;

/// Why a command ended without doing it. `hint` says what to try.
#[derive(Debug)]
pub(crate) struct Failure {
    pub message: String,
    pub hint: Option<String>,
    pub status: u8,
    /// A deploy whose image could not be had, or its program not be started: it wrote nothing.
    pub nothing_ran: bool,
    /// Which fields of what was sent are wrong, and why.
    pub violations: Vec<(String, String)>,
    /// Google's word for it (`NOT_FOUND`), when the server refused.
    code: Option<String>,
}

impl Failure {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            status: 1,
            nothing_ran: false,
            violations: Vec::new(),
            code: None,
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            status: 2,
            nothing_ran: false,
            violations: Vec::new(),
            code: None,
        }
    }

    /// The same, naming what the command was about.
    pub(crate) fn about(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            status: 3,
            nothing_ran: false,
            violations: Vec::new(),
            code: None,
        }
    }

    /// Whether the server knows nothing of that name.
    pub(crate) fn is_not_found(&self) -> bool {
        self.code.as_deref() == Some("NOT_FOUND")
    }

    /// Whether what was sent is wrong.
    pub(crate) fn is_invalid(&self) -> bool {
        self.code.as_deref() == Some("INVALID_ARGUMENT")
    }

    /// Whether somebody else's change came between what was read and what was sent.
    pub(crate) fn is_overtaken(&self) -> bool {
        self.code.as_deref() == Some("ABORTED")
    }

    /// Whether the server has something of that name already.
    pub(crate) fn is_already_there(&self) -> bool {
        self.code.as_deref() == Some("ALREADY_EXISTS")
    }

    /// The same, with one line per wrong field. The message of a single one says it all.
    pub(crate) fn with_violations(mut self, violations: Vec<(String, String)>) -> Self {
        if violations.len() > 1 {
            for (field, description) in &violations {
                self.message
                    .push_str(&format!("\n  {field}: {description}"));
            }
        }
        self.violations = violations;
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// A server that is there answers its first question in milliseconds; one that starts has this long.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// Where the server is and what project and region are meant.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    base: String,
    pub project: String,
    pub region: String,
    /// The region the server is configured with.
    pub home: String,
}

/// A client for `base` that never asks a proxy.
pub(crate) fn near(base: &str) -> Result<reqwest::Client, Failure> {
    let builder = reqwest::Client::builder()
        .no_proxy()
        .connect_timeout(Duration::from_secs(3));
    let builder = if base.starts_with("https://") {
        builder
    } else {
        // No certificate is ever needed here, so none must be found either: small machines have none.
        builder.tls_certs_only([])
    };
    builder
        .build()
        .map_err(|e| Failure::failed(format!("set up the HTTP client: {e}")))
}

impl Api {
    /// Reaches the server at `base` (`http://localhost:8787`) and fills in its default project and region.
    ///
    /// # Errors
    /// Status 3 when nothing answers there or something else does.
    pub(crate) async fn connect(
        base: &str,
        project: Option<String>,
        region: Option<String>,
    ) -> Result<Self, Failure> {
        let base = base.trim_end_matches('/').to_owned();
        let base = if base.contains("://") {
            base
        } else {
            format!("http://{base}")
        };
        let http = near(&base)?;
        let mut api = Self {
            http,
            base,
            project: String::new(),
            region: String::new(),
            home: String::new(),
        };
        // Without a server the keeper still holds its socket: connections are made, and nobody answers.
        let question = api.http.get(api.url("/utsuwa/v1/info"));
        let what = format!(
            "the server at {} to answer, up to {} s",
            api.base,
            FIRST_ANSWER.as_secs()
        );
        let info = waited(&what, api.send(question.timeout(FIRST_ANSWER)))
            .await
            .map_err(|failure| match failure.status {
                // The API refuses this question to nobody, and never without a word of Google's.
                1 if failure.code.is_none() => not_the_api(&api.base),
                _ => failure,
            })?;
        let text = |key: &str| info[key].as_str().unwrap_or_default().to_owned();
        api.project = project.unwrap_or_else(|| text("project"));
        api.home = text("region");
        api.region = region.unwrap_or_else(|| api.home.clone());
        Ok(api)
    }

    /// `projects/P/locations/R`.
    pub(crate) fn parent(&self) -> String {
        format!("projects/{}/locations/{}", self.project, self.region)
    }

    /// The v2 path of a service.
    pub(crate) fn service(&self, name: &str) -> String {
        format!("/run/v2/{}/services/{name}", self.parent())
    }

    /// The same project, in another region.
    pub(crate) fn in_region(&self, region: &str) -> Self {
        Self {
            region: region.to_owned(),
            ..self.clone()
        }
    }

    /// Our own path of what a service does and why.
    pub(crate) fn explain(&self, name: &str) -> String {
        format!("/utsuwa/v1/{}/services/{name}:explain", self.parent())
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.send(self.http.get(self.url(path))).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.send(self.http.post(self.url(path)).json(body)).await
    }

    /// A POST that the server may take up to `within` to answer.
    pub(crate) async fn post_within(
        &self,
        path: &str,
        body: &Value,
        within: Duration,
    ) -> Result<Value, Failure> {
        self.send(self.http.post(self.url(path)).json(body).timeout(within))
            .await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.send(self.http.patch(self.url(path)).json(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.send(self.http.delete(self.url(path))).await
    }

    /// Uploads `body` with POST.
    pub(crate) async fn upload(&self, path: &str, body: reqwest::Body) -> Result<Value, Failure> {
        self.send(
            self.http
                .post(self.url(path))
                .header("content-type", "application/x-tar")
                .body(body),
        )
        .await
    }

    /// A GET whose body is read as it comes.
    pub(crate) async fn stream(&self, path: &str) -> Result<reqwest::Response, Failure> {
        let response = self
            .http
            .get(self.url(path))
            .send()
            .await
            .map_err(|e| self.unreachable(&e))?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(refused(response).await)
        }
    }

    /// Every item of a paged v2 listing; `field` is the array's name.
    pub(crate) async fn list(&self, path: &str, field: &str) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        let mut token = String::new();
        loop {
            let mut page = self
                .get(&format!("{path}?pageSize=500&pageToken={token}"))
                .await?;
            if let Some(Value::Array(more)) = page.get_mut(field).map(Value::take) {
                items.extend(more);
            }
            match page["nextPageToken"].as_str() {
                Some(next) if !next.is_empty() => token = next.to_owned(),
                _ => return Ok(items),
            }
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Value, Failure> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        response.json().await.map_err(|e| {
            if !e.is_decode() {
                return self.unreachable(&e);
            }
            not_the_api(&self.base)
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        if error.is_timeout() && !error.is_connect() {
            let message = format!(
                "the server at {} does not answer: its address takes connections, so its keeper holds it open, but no server runs or it \
                 is stuck",
                self.base
            );
            return Failure::unreachable(message)
                .hint("start it with `utsuwa up`; `utsuwa doctor` tells more");
        }
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Failure::unreachable(format!(
            "could not reach the server at {}: {cause}",
            self.base
        ))
        .hint("start it with `utsuwa up`, or name another address with --api URL or UTSUWA_API")
    }
}

/// Where it is unless somebody says otherwise.
pub(crate) const DEFAULT_API: &str = "http://localhost:8787";

/// Another program's answer, or that of this server's services, is of no use to whoever called the API.
fn not_the_api(base: &str) -> Failure {
    Failure::unreachable(format!(
        "something answers at {base} that isn't the API of a server"
    ))
    .hint(format!(
        "the API is at {DEFAULT_API} by default, at another port than services; name its address with --api URL or UTSUWA_API; \
         `utsuwa doctor` tells more"
    ))
}

/// Google's error JSON as a sentence; field violations one per line.
async fn refused(response: reqwest::Response) -> Failure {
    let status = response.status();
    let body = response.text().await.unwrap_or_default();
    refusal(status, &body)
}

fn refusal(status: reqwest::StatusCode, body: &str) -> Failure {
    let Ok(json) = serde_json::from_str::<Value>(body) else {
        return Failure::failed(format!("{status}: {}", body.trim()));
    };
    let error = &json["error"];
    let message = error["message"].as_str().unwrap_or(body).trim();
    let details = error["details"].as_array().into_iter().flatten();
    let violations = details
        .filter_map(|detail| detail["fieldViolations"].as_array())
        .flatten()
        .map(|violation| {
            let text = |key: &str| violation[key].as_str().unwrap_or("?").to_owned();
            (text("field"), text("description"))
        })
        .collect();
    let failure = Failure {
        code: error["status"].as_str().map(str::to_owned),
        ..Failure::failed(message)
    };
    failure.with_violations(violations)
}

/// A refusal with Google's word `code`, for tests.
#[cfg(test)]
pub(crate) fn refused_as(code: &str) -> Failure {
    let body = serde_json::json!({"error": {"message": "no", "status": code}});
    refusal(reqwest::StatusCode::CONFLICT, &body.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What a command says of a program that answers every request with `answer`.
    async fn told_of(answer: &'static str) -> Failure {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let other = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let (connected, ()) = tokio::join!(Api::connect(&base, None, None), other);
        connected.unwrap_err()
    }

    #[tokio::test]
    async fn what_is_not_the_api_is_said_and_not_shown() {
        for answer in [
            "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n<html><h1>Page not found</h1></html>",
            "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n404 page not found",
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>Hello</html>",
        ] {
            let failure = told_of(answer).await;
            assert_eq!(failure.status, 3, "{failure:?}");
            assert!(failure.message.contains("isn't the API"), "{failure:?}");
            assert!(!failure.message.contains("age not found"), "{failure:?}");
            let hint = failure.hint.unwrap();
            assert!(hint.contains(DEFAULT_API), "{hint}");
        }
    }

    #[tokio::test]
    async fn what_the_api_says_is_passed_on() {
        let failure = told_of(
            "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\r\n\
             {\"error\":{\"message\":\"it starts\",\"status\":\"UNAVAILABLE\"}}",
        )
        .await;
        assert_eq!((failure.status, failure.message.as_str()), (1, "it starts"));
    }
}
