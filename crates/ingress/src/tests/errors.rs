//! Every status of §2.5 and §2.6, and how a broken instance looks to a client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use utsuwa_model::route::{Access, RevisionRoute, RouteTable, Target};

use super::app::*;
use super::scene::*;
use crate::seam::AnsweredBy;

fn why(record: &crate::seam::RequestRecord) -> &str {
    match &record.answered_by {
        AnsweredBy::Utsuwa { why } => why,
        AnsweredBy::App => "",
    }
}

#[tokio::test]
async fn hosts_that_are_not_served() {
    let scene = Scene::new(route()).await;
    let reply = scene
        .send(Request::get("/").header("host", "nobody.localhost"))
        .await;
    assert_eq!((reply.status, reply.reason()), (404, "unknown_host"));
    assert!(reply.text().contains("<html"), "{}", reply.text());
    assert_eq!(reply.header("server"), "utsuwa");
    for (text, status) in [
        ("GET / HTTP/1.0\r\n\r\n", "404"),
        ("GET / HTTP/1.1\r\nconnection: close\r\n\r\n", "400"),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n",
            "400",
        ),
        (
            "TRACE / HTTP/1.1\r\nhost: hello.localhost\r\nconnection: close\r\n\r\n",
            "405",
        ),
        (
            "CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\nconnection: close\r\n\r\n",
            "405",
        ),
    ] {
        let answer = scene.raw(text).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{text:?}: {answer}");
    }
    assert_eq!(scene.loops.wakes.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_host_is_found_however_it_is_written() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    scene.ready(&app).await;
    for text in [
        "GET /hello HTTP/1.1\r\nhost: HELLO.localhost:8080\r\nconnection: close\r\n\r\n",
        "GET /hello HTTP/1.1\r\nhost: hello.localhost.\r\nconnection: close\r\n\r\n",
        "GET http://hello.localhost/hello HTTP/1.1\r\nhost: Hello.localhost\r\nconnection: close\r\n\r\n",
        "GET /hello HTTP/1.0\r\nhost: hello.localhost\r\n\r\n",
    ] {
        let answer = scene.raw(text).await;
        assert!(
            answer.contains(" 200 OK") && answer.ends_with("hello"),
            "{text:?}: {answer}"
        );
    }
}

#[tokio::test]
async fn private_and_closed_services_and_ones_that_never_became_ready() {
    let scene = Scene::new(route()).await;
    scene.publish(table(route(), Access::Authenticated));
    for method in ["GET", "OPTIONS"] {
        let reply = scene.send(Request::builder().method(method).uri("/")).await;
        assert_eq!((reply.status, reply.reason()), (403, "not_authenticated"));
        assert!(reply.text().contains("does not have permission"));
    }
    let reply = scene
        .send(Request::get("/").header("authorization", "Bearer x"))
        .await;
    assert_eq!(reply.status, 403);
    scene.publish(table(route(), Access::Closed));
    assert_eq!(scene.get("/").await.status, 404);

    let mut never = RouteTable::clone(&table(route(), Access::Public));
    let host = never.hosts.get_mut(HOST).unwrap();
    Arc::make_mut(host).target = Target::NotReady {
        message: "image not found".to_owned(),
    };
    scene.publish(Arc::new(never));
    let reply = scene.get("/").await;
    assert_eq!((reply.status, reply.reason()), (503, "not_ready"));
    let reply = scene
        .send(Request::builder().method("TRACE").uri("/"))
        .await;
    assert_eq!(reply.status, 405);

    let records = scene.records(6).await;
    for record in &records {
        assert_eq!(record.service(), Some(&key().service), "{record:?}");
    }
    assert!(
        why(&records[0]).contains("The request was not authenticated.")
            && why(&records[0]).ends_with("Empty Authorization header value.")
    );
    assert!(why(&records[2]).ends_with("The IAM principal lacks {run.routes.invoke} permission."));
    assert!(why(&records[4]).contains("image not found"));
    assert_eq!(
        scene.loops.wakes.load(Ordering::SeqCst),
        0,
        "rejections never wake"
    );
}

#[tokio::test]
async fn what_the_app_answers_is_the_app_s() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    let id = scene.ready(&app).await;
    let reply = scene
        .send(Request::get("/teapot?x=1").header("user-agent", "tester"))
        .await;
    assert_eq!(
        (reply.status, reply.text(), reply.reason()),
        (418, "short and stout", "")
    );
    let record = &scene.records(1).await[0];
    assert_eq!(record.answered_by, AnsweredBy::App);
    assert_eq!(
        (record.status, record.path.as_str(), record.method.as_str()),
        (418, "/teapot?x=1", "GET")
    );
    assert_eq!(
        (
            &*record.host,
            record.remote.to_string().as_str(),
            record.user_agent.as_str()
        ),
        (HOST, "127.0.0.1", "tester")
    );
    assert_eq!(
        (record.instance.as_ref(), record.revision.as_ref()),
        (Some(&id), Some(&key()))
    );
    assert_eq!(
        (record.response_bytes, record.trace.as_str().len()),
        (15, 32)
    );
}

#[tokio::test]
async fn the_timeout_cuts_the_client_and_leaves_the_instance() {
    let scene = Scene::new(RevisionRoute {
        timeout: Duration::from_millis(80),
        concurrency: 1,
        ..route()
    })
    .await;
    let app = App::new().await;
    scene.ready(&app).await;
    let reply = scene.get("/gate").await;
    assert_eq!(
        (reply.status, reply.text()),
        (504, "upstream request timeout")
    );
    assert!(why(&scene.records(1).await[0]).contains("maximum request timeout"));
    // The slot is free and the instance still serves.
    assert_eq!(scene.demand().in_flight, 0);
    assert_eq!(scene.get("/hello").await.status, 200);
}

#[tokio::test]
async fn an_instance_that_closes_or_talks_nonsense_is_a_503() {
    for nonsense in ["", "HTTP/1.1 200", "blah blah\r\n\r\n"] {
        let (address, _app) = raw_app(move |_, mut stream| async move {
            let mut buffer = [0; 1024];
            drop(stream.read(&mut buffer).await);
            drop(stream.write_all(nonsense.as_bytes()).await);
        })
        .await;
        let scene = Scene::new(route()).await;
        let id = scene.admit();
        scene.listen(&id, address);
        let reply = scene.get("/").await;
        assert_eq!(
            (reply.status, reply.reason()),
            (503, "instance_error"),
            "{nonsense:?}"
        );
        assert!(
            reply
                .text()
                .starts_with("The request failed because either the HTTP response was malformed")
        );
    }
}

#[tokio::test]
async fn requests_in_a_dead_instance_are_answered() {
    for (oom, status, begin) in [
        (false, 503, "The request failed because"),
        (true, 500, "While handling this request"),
    ] {
        let scene = Scene::new(route()).await;
        let app = App::new().await;
        let id = scene.ready(&app).await;
        let address = scene.address;
        let mut asked = JoinSet::new();
        asked.spawn(async move {
            let request = Request::get("/gate").header("host", HOST);
            call(address, request.body(http_body_util::Empty::new()).unwrap()).await
        });
        scene.until(|demand| demand.in_flight == 1).await;
        scene.ingress.forget(&id, oom);
        let reply = asked.join_next().await.unwrap().unwrap();
        assert_eq!(reply.status, status);
        assert!(reply.text().starts_with(begin), "{}", reply.text());
        let demand = scene.demand();
        assert_eq!((demand.in_flight, demand.instances.len()), (0, 0));
    }
}

/// The sockets break first, the news of why comes after.
#[tokio::test]
async fn out_of_memory_is_told_even_if_the_connection_breaks_first() {
    let scene = Scene::new(route()).await;
    let mut app = App::new().await;
    let id = scene.ready(&app).await;
    let address = scene.address;
    let mut asked = JoinSet::new();
    asked.spawn(async move {
        let request = Request::get("/gate").header("host", HOST);
        call(address, request.body(http_body_util::Empty::new()).unwrap()).await
    });
    eventually(
        || (app.life.inside.load(Ordering::SeqCst) == 1).then_some(()),
        || "nobody inside".to_owned(),
    )
    .await;
    app.die();
    eventually(
        || (app.life.inside.load(Ordering::SeqCst) == 0).then_some(()),
        || "alive".to_owned(),
    )
    .await;
    scene.ingress.forget(&id, true);
    assert_eq!(asked.join_next().await.unwrap().unwrap().status, 500);
}

#[tokio::test]
async fn a_kept_connection_that_the_app_closed_is_no_error() {
    // Answers one request per connection, then closes, without saying so.
    let [served, closed] = [(); 2].map(|()| Arc::new(AtomicU32::new(0)));
    let counts = [Arc::clone(&served), Arc::clone(&closed)];
    let (address, _app) = raw_app(move |_, mut stream| {
        let [seen, gone] = counts.clone();
        async move {
            let mut buffer = [0; 4096];
            if stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                seen.fetch_add(1, Ordering::SeqCst);
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .await
                    .unwrap();
                drop(stream);
                gone.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let scene = Scene::new(route()).await;
    let id = scene.admit();
    scene.listen(&id, address);
    for turn in 1..=20 {
        let reply = scene.get("/").await;
        assert_eq!((reply.status, reply.text()), (200, "ok"));
        // Kept, and closed by the app: the next request finds it like that.
        scene.until(|demand| demand.in_flight == 0).await;
        let count = || closed.load(Ordering::SeqCst);
        eventually(|| (count() == turn).then_some(()), || count().to_string()).await;
    }
    assert_eq!(served.load(Ordering::SeqCst), 20);
}

/// The close crosses the request on its way: the app reads the second request and closes without a word.
#[tokio::test]
async fn only_what_is_safe_is_sent_again() {
    let seen = Arc::new(AtomicU32::new(0));
    let requests = Arc::clone(&seen);
    let (address, _app) = raw_app(move |_, mut stream| {
        let requests = Arc::clone(&requests);
        async move {
            let mut buffer = [0; 4096];
            for answers in [true, false] {
                if !stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    return;
                }
                requests.fetch_add(1, Ordering::SeqCst);
                if answers {
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                        .await
                        .unwrap();
                }
            }
        }
    })
    .await;
    let scene = Scene::new(route()).await;
    let id = scene.admit();
    scene.listen(&id, address);
    assert_eq!(scene.get("/").await.status, 200);
    // Its connection is kept before its slot is free.
    let kept = || scene.until(|demand| demand.in_flight == 0);
    kept().await;
    assert_eq!(
        scene.get("/").await.status,
        200,
        "a GET is sent again on a new connection"
    );
    assert_eq!(seen.load(Ordering::SeqCst), 3);
    kept().await;
    let reply = scene
        .send_body(Request::post("/"), Bytes::from_static(b"pay"))
        .await;
    assert_eq!(reply.status, 503, "a POST may have been done already");
    assert_eq!(seen.load(Ordering::SeqCst), 4);
}
