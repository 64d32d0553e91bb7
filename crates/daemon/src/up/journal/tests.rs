use utsuwa_ingress::seam::{AnsweredBy, Method};

use super::*;

const ROOMY: JournalLimits = JournalLimits {
    service_budget: 16 << 20,
    reserve: 0,
};

fn happening(service: &ServiceKey, at: i64, text: &str) -> Happening {
    Happening {
        at: Timestamp(at),
        service: service.clone(),
        revision: "hello-00001-abc".to_owned(),
        instance: None,
        severity: "ERROR",
        text: text.to_owned(),
        written: None,
    }
}

fn service(name: &str) -> ServiceKey {
    format!("demo/here/{name}").parse().unwrap()
}

/// All that is there, oldest first.
fn texts(journal: &Journal, service: &ServiceKey) -> Vec<String> {
    let files = journal.files(service);
    let all = files
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok());
    let lines: Vec<String> = all
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    lines.iter().map(|line| read(line).unwrap().text).collect()
}

fn end(journal: Journal, thread: JoinHandle<()>) {
    journal.end();
    thread.join().unwrap();
}

#[test]
fn what_is_written_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, thread) = Journal::start(dir.path().to_owned(), ROOMY).unwrap();
    let service = service("hello");
    journal.note(happening(&service, 5, "exited with status 7"));
    let [_, current] = journal.files(&service);
    drop(journal);
    thread.join().unwrap();
    let text = std::fs::read_to_string(current).unwrap();
    let shown = read(text.trim()).unwrap();
    assert_eq!(
        (shown.at, shown.text.as_str()),
        (Timestamp(5), "exited with status 7")
    );
    assert_eq!(read("not json"), None);
}

#[test]
fn a_journal_stays_within_its_budget_and_counts_what_it_drops() {
    let dir = tempfile::tempdir().unwrap();
    let limits = JournalLimits {
        service_budget: 20_000,
        reserve: 0,
    };
    let service = service("hello");
    let total = 1_000_u64;
    let mut written = 0;
    // Two lives of the server, the first one killed while a file was on its way out.
    for half in 0..2 {
        let (journal, thread) = Journal::start(dir.path().to_owned(), limits).unwrap();
        let waiting = journal.clone();
        for _ in 0..total / 2 {
            written += 1;
            waiting.note(happening(&service, 5, &format!("number {written}")));
        }
        drop(waiting);
        let [old, current] = journal.files(&service);
        end(journal.clone(), thread);
        let size: u64 = [&old, &current]
            .map(|p| p.metadata().unwrap().len())
            .iter()
            .sum();
        assert!(size <= limits.service_budget, "{size}");
        let kept = texts(&journal, &service);
        let dropped = journal.dropped(&service);
        assert_eq!(dropped.lines + kept.len() as u64, written);
        assert_eq!(kept.last().unwrap(), &format!("number {written}"));
        assert!(kept.len() > 50, "about as much as fits: {}", kept.len());
        if half == 0 {
            let gone = old.with_extension("gone");
            std::fs::write(&gone, "{}\n{}\n").unwrap();
            // Counted below as two more.
            written += 2;
        }
    }
}

#[test]
fn the_disks_reserve_is_left_alone_and_what_is_missing_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let full = JournalLimits {
        service_budget: 16 << 20,
        reserve: u64::MAX,
    };
    let service = service("hello");
    let (journal, thread) = Journal::start(dir.path().to_owned(), full).unwrap();
    let (written, mut on_disk) = oneshot::channel();
    let mut told = happening(&service, 5, "lost");
    told.written = Some(written);
    journal.note(told);
    journal.note(happening(&service, 6, "lost too"));
    end(journal.clone(), thread);
    on_disk.try_recv().unwrap();
    // Its count is all that was written, with the last of what may be taken.
    assert_eq!(
        texts(&journal, &service),
        ["2 entries of this journal are missing here: the disk was full"]
    );
}

#[test]
fn what_the_channel_cannot_take_is_counted_per_service() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (service("a"), service("b"));
    let (sender, receiver) = sync_channel(2);
    let lost = Arc::new(Lost::default());
    let written = Arc::new(watch::Sender::new(0));
    let journal = Journal {
        sender,
        lost: Arc::clone(&lost),
        written: Arc::clone(&written),
        shared: Arc::default(),
        root: dir.path().to_owned(),
    };
    for number in 0..5 {
        journal.note(happening(&a, 5, &format!("number {number}")));
    }
    journal.note(happening(&b, 5, "lost"));
    drop(journal);
    let writer = Writer::new(dir.path(), ROOMY, lost, written, Arc::default());
    writer.run(&receiver);
    let (files, thread) = Journal::start(dir.path().to_owned(), ROOMY).unwrap();
    let missing = |count: u64| {
        format!("{count} entries of this journal are missing here: more came than could be written")
    };
    assert_eq!(
        texts(&files, &a),
        [missing(3), "number 0".to_owned(), "number 1".to_owned()]
    );
    assert_eq!(texts(&files, &b), [missing(1)]);
    end(files, thread);
}

#[tokio::test]
async fn a_removed_service_leaves_nothing_and_another_of_its_name_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, thread) = Journal::start(dir.path().to_owned(), ROOMY).unwrap();
    let service = service("hello");
    journal.note(happening(&service, 5, "the former one"));
    let refused = journal.remove(service.clone(), Some(Timestamp(7))).await;
    assert!(refused.unwrap_err().contains("meanwhile"));
    assert_eq!(texts(&journal, &service), ["the former one"]);
    for _ in 0..2 {
        journal.remove(service.clone(), None).await.unwrap();
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    journal.note(happening(&service, 8, "another"));
    let unknown: ServiceKey = "demo/here/gone".parse().unwrap();
    journal.remove(unknown, None).await.unwrap();
    assert_eq!(texts(&journal, &service), ["another"]);
    end(journal, thread);
}

#[test]
fn who_has_nothing_to_say_holds_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let written = Arc::new(tokio::sync::watch::Sender::new(0));
    let mut writer =
        writer::Writer::new(dir.path(), ROOMY, Arc::default(), written, Arc::default());
    writer.entry(&service("quiet"), Timestamp(1), "{}\n");
    writer.flush();
    let now = std::time::Instant::now();
    let second = std::time::Duration::from_secs(1);
    assert_eq!(
        writer.close_idle(now + second),
        1,
        "it has just been written to"
    );
    assert_eq!(writer.close_idle(now + second * 6), 0);
    writer.entry(&service("quiet"), Timestamp(2), "{}\n");
    writer.flush();
    let current = dir.path().join("demo/here/quiet/journal.jsonl");
    let text = std::fs::read_to_string(current).unwrap();
    assert_eq!(text, "{}\n{}\n", "opened again, nothing lost");
}

/// §2.11: the request log has every request of the service, also one that no revision ever saw.
#[test]
fn a_rejected_request_is_in_the_journal_of_its_service() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, thread) = Journal::start(dir.path().to_owned(), ROOMY).unwrap();
    let service: ServiceKey = "demo/here/hello".parse().unwrap();
    let rejected = |service: Option<ServiceKey>| {
        Box::new(RequestRecord {
            at: Timestamp(5),
            host: "hello.localhost".into(),
            port: Some(80),
            method: Method::GET,
            path: "/".to_owned(),
            status: 403,
            answered_by: AnsweredBy::Utsuwa {
                why: "The request was not authenticated.".to_owned(),
            },
            service,
            revision: None,
            instance: None,
            remote: "127.0.0.1".parse().unwrap(),
            user_agent: String::new(),
            referer: String::new(),
            scheme: "http",
            protocol: "HTTP/1.1",
            server_ip: None,
            trace: "0af7651916cd43dd8448eb211c80319c".parse().unwrap(),
            span: 1,
            sampled: true,
            request_bytes: 0,
            response_bytes: 0,
            queued: std::time::Duration::ZERO,
            first_byte: std::time::Duration::ZERO,
            latency: std::time::Duration::ZERO,
            cold: None,
        })
    };
    journal.record(rejected(None));
    journal.record(rejected(Some(service.clone())));
    let [_, current] = journal.files(&service);
    drop(journal);
    thread.join().unwrap();
    let text = std::fs::read_to_string(current).unwrap();
    assert_eq!(text.lines().count(), 1);
    let shown = read(text.trim()).unwrap();
    assert!(
        shown.text.contains(" 403 ") && shown.text.ends_with("not authenticated."),
        "{}",
        shown.text
    );
}

#[tokio::test]
async fn two_servers_write_whole_lines_and_one_of_them_turns_files() {
    let directory = tempfile::tempdir().unwrap();
    let limits = JournalLimits {
        service_budget: 4_000,
        reserve: 0,
    };
    let service = service("both");
    let start = || Journal::start(directory.path().to_owned(), limits).unwrap();
    let (old, old_thread) = start();
    old.share().await;
    // The first that is ever written is a stream's that ends in the old one.
    old.note(happening(&service, 0, "old"));
    end(old, old_thread);
    let (new, new_thread) = start();
    assert_eq!(texts(&new, &service), ["old"]);
    let (old, old_thread) = start();
    old.share().await;
    for round in 0..200 {
        old.note(happening(&service, round, "from the old one"));
        new.note(happening(&service, round, "from the new one"));
    }
    end(old.clone(), old_thread);
    let files = new.files(&service);
    let dropped = new.dropped(&service).lines;
    end(new, new_thread);
    let kept: Vec<String> = files
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap_or_default())
        .collect();
    let lines: usize = kept.iter().map(|text| text.lines().count()).sum();
    assert!(
        kept.iter()
            .flat_map(|text| text.lines())
            .all(|line| read(line).is_some())
    );
    let dropped = dropped.max(old.dropped(&service).lines);
    assert_eq!(
        lines as u64 + dropped,
        401,
        "every line is there or counted"
    );
}

#[test]
fn a_cold_start_is_told_once_for_all_who_waited() {
    let mut told = told::Told::default();
    let id = |n: u32| format!("{n:032x}").parse::<InstanceId>().unwrap();
    let news: Vec<bool> = [1, 1, 2, 1, 2, 3].map(|n| told.is_news(&id(n))).to_vec();
    assert_eq!(news, [true, false, true, false, false, true]);
}

fn served() -> RequestRecord {
    let ms = std::time::Duration::from_millis;
    RequestRecord {
        at: Timestamp(1_700_000_000_000_000),
        host: "hello.localhost".into(),
        port: None,
        method: Method::GET,
        path: "/a?q=\"x\\y\"".to_owned(),
        status: 200,
        answered_by: AnsweredBy::App,
        service: None,
        revision: Some("demo/here/hello/hello-00001-abc".parse().unwrap()),
        instance: Some("00000000000000000000000000000001".parse().unwrap()),
        remote: "10.0.0.1".parse().unwrap(),
        user_agent: "curl/7\t\u{7f}".to_owned(),
        referer: "http://elsewhere/".to_owned(),
        scheme: "https",
        protocol: "HTTP/2.0",
        server_ip: Some("10.0.0.2".parse().unwrap()),
        trace: "0af7651916cd43dd8448eb211c80319c".parse().unwrap(),
        span: 255,
        sampled: true,
        request_bytes: 3,
        response_bytes: 5_000_000_000,
        queued: ms(12),
        first_byte: ms(13),
        latency: ms(1_234),
        cold: None,
    }
}

fn line_of(record: &RequestRecord) -> String {
    let mut line = String::new();
    super::format::request_line(&mut line, record);
    line
}

#[test]
fn times_are_written_to_the_microsecond() {
    for (micros, shown, seconds) in [
        (0, "0", "0.000000s"),
        (7, "0.007", "0.000007s"),
        (60, "0.06", "0.000060s"),
        (1_500, "1.5", "0.001500s"),
        (100_000, "100", "0.100000s"),
        (61_000_010, "61000.01", "61.000010s"),
    ] {
        let latency = std::time::Duration::from_micros(micros);
        let line = line_of(&RequestRecord {
            latency,
            ..served()
        });
        assert!(line.contains(&format!("\"lastByte\":{shown}}}")), "{line}");
        assert!(
            line.contains(&format!("\"latency\":\"{seconds}\"")),
            "{line}"
        );
    }
}

/// §2.11, field by field, with Google's own JSON names and forms.
#[test]
fn a_request_is_written_as_cloud_logging_has_it() {
    let line = line_of(&served());
    let entry: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        entry,
        serde_json::json!({
            "at": 1_700_000_000_000_000_i64,
            "severity": "INFO",
            "httpRequest": {
                "requestMethod": "GET",
                "requestUrl": "https://hello.localhost/a?q=\"x\\y\"",
                "requestSize": "3",
                "status": 200,
                "responseSize": "5000000000",
                "userAgent": "curl/7\t\u{7f}",
                "remoteIp": "10.0.0.1",
                "serverIp": "10.0.0.2",
                "referer": "http://elsewhere/",
                "latency": "1.234000s",
                "protocol": "HTTP/2.0",
            },
            "trace": "projects/demo/traces/0af7651916cd43dd8448eb211c80319c",
            "spanId": "00000000000000ff",
            "traceSampled": true,
            "revision": "hello-00001-abc",
            "instance": "00000000000000000000000000000001",
            "phasesMs": {"queue": 12, "firstByte": 13, "lastByte": 1234},
        })
    );
    for (status, severity) in [
        (399, "INFO"),
        (404, "WARNING"),
        (499, "WARNING"),
        (503, "ERROR"),
    ] {
        let line = line_of(&RequestRecord { status, ..served() });
        assert!(
            line.contains(&format!("\"severity\":\"{severity}\"")),
            "{line}"
        );
    }
    let shown = read(line.trim()).unwrap();
    assert_eq!(
        shown.text,
        "GET https://hello.localhost/a?q=\"x\\y\" 200 1234.0 ms (waited 12.0 ms for an instance)"
    );
    assert_eq!(
        shown.written,
        shown.at.plus(std::time::Duration::from_millis(1_234))
    );
    assert!(shown.request);
}

/// Followed as it is, it has to lead where the client was.
#[test]
fn the_address_of_a_request_has_the_port_that_was_asked_for() {
    for (scheme, port, start) in [
        ("https", Some(8443), "https://hello.localhost:8443/"),
        ("https", Some(80), "https://hello.localhost:80/"),
        ("https", Some(443), "https://hello.localhost/"),
        ("http", Some(8080), "http://hello.localhost:8080/"),
        ("http", Some(80), "http://hello.localhost/"),
        ("http", None, "http://hello.localhost/"),
    ] {
        let record = RequestRecord {
            scheme,
            port,
            ..served()
        };
        let shown = read(line_of(&record).trim()).unwrap();
        let start = format!("GET {start}a?");
        assert!(shown.text.starts_with(&start), "{start}: {}", shown.text);
    }
}

/// What an older build wrote stays readable.
#[test]
fn an_entry_of_an_older_build_is_shown() {
    let line = r#"{"at":5,"requestMethod":"GET","requestUrl":"http://a/","status":200,"latencyMs":1.5,"revision":"r"}"#;
    let shown = read(line).unwrap();
    assert_eq!(
        (shown.text.as_str(), shown.request),
        ("GET http://a/ 200 1.5 ms", true)
    );
}

#[test]
fn many_requests_are_written_whole_and_half_a_line_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let service = service("hello");
    let folder = dir.path().join("demo/here/hello");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("journal.jsonl"), "{\"at\":1,\"te").unwrap();
    let (journal, thread) = Journal::start(dir.path().to_owned(), ROOMY).unwrap();
    for number in 0..5_000 {
        let mut record = Box::new(served());
        record.path = format!("/{number}");
        journal.record(record);
        if number % 1_000 == 0 {
            // Another service in between: each has its own file.
            journal.note(happening(&self::service("other"), 5, "said"));
        }
    }
    let [_, current] = journal.files(&service);
    end(journal.clone(), thread);
    assert_eq!(journal.lost(), 0);
    let text = std::fs::read_to_string(current).unwrap();
    let shown: Vec<String> = text
        .lines()
        .filter_map(|line| Some(read(line)?.text))
        .collect();
    assert_eq!(text.lines().count(), 5_001);
    assert_eq!(shown.len(), 5_000);
    assert!(shown[4_999].contains("localhost/4999 "), "{}", shown[4_999]);
    assert_eq!(texts(&journal, &self::service("other")).len(), 5);
}
