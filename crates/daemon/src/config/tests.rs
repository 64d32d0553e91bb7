use std::collections::BTreeMap;

use super::*;

fn read(
    file: Option<&str>,
    variables: &[(&str, &str)],
    flags: &[(&'static str, &str)],
) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = file.map(|text| {
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        path
    });
    let given = Given {
        file: path,
        variables: variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        defaults: BTreeMap::new(),
        flags: flags
            .iter()
            .map(|(k, v)| (*k, vec![(*v).to_owned()]))
            .collect::<BTreeMap<_, _>>(),
    };
    Layers::read(&given)?.check()
}

#[test]
fn the_defaults_are_valid() {
    let config = read(None, &[], &[]).unwrap();
    assert_eq!(config.listen_api.to_string(), "localhost:8787");
    assert_eq!(config.idle_timeout, Duration::from_secs(900));
    assert_eq!(config.listen_http.addresses().len(), 2);
}

#[test]
fn flags_beat_variables_beat_the_file() {
    let file = Some(
        "domain = \"file.test\"\nproject = \"file-project\"\nregion = \"file-region\"\nlisten_http = \"localhost:1\"\n",
    );
    let config = read(
        file,
        &[
            ("UTSUWA_PROJECT", "variable"),
            ("UTSUWA_REGION", "variable"),
        ],
        &[("region", "flag")],
    )
    .unwrap();
    assert_eq!(
        (
            config.domain.as_str(),
            config.project.as_str(),
            config.region.as_str(),
            config.listen_http.port
        ),
        ("file.test", "variable", "flag", 1)
    );
}

#[test]
fn all_problems_are_told_at_once_with_their_sources() {
    let error = read(
        None,
        &[("UTSUWA_DOMAIN", "UPPER")],
        &[("listen-api", "0.0.0.0:1"), ("idle-timeout", "soon")],
    )
    .unwrap_err();
    let text = error.to_string();
    for part in [
        "3 problems",
        "variable UTSUWA_DOMAIN",
        "flag --listen-api",
        "loopback",
        "idle-timeout = \"soon\"",
    ] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
}

/// One of each kind, and the last line is no TOML: none hides another.
#[test]
fn a_file_tells_all_its_problems_in_one_go() {
    let file = "domian = \"x\"\nproject = [1]\nregion = \"UPPER\"\nidle_timeout = \"soon\"\nlog_level = info\n";
    let error = read(Some(file), &[], &[("listen-api", "0.0.0.0:1")]).unwrap_err();
    let text = error.to_string();
    for part in [
        "6 problems",
        "line 1: domian: no such option; did you mean domain?",
        "line 2: project: must be a string",
        "config.toml, line 3: ",
        "config.toml, line 4: ",
        "line 5: is not TOML",
        "flag --listen-api",
    ] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
}

/// Whatever kind each is of, and whichever option is looked at first.
#[test]
fn problems_are_told_in_the_order_of_the_lines() {
    let file = "user = 1.5\nregion = \"UPPER\"\nlog_level = \"loud\"\nlisten_http = \"here\"\ndomian = \"x\"\nproject = \"P\"\nuser = x\n";
    let flags = [("listen-api", "0.0.0.0:1"), ("idle-timeout", "soon")];
    let ConfigError(problems) = read(Some(file), &[], &flags).unwrap_err();
    let line = |problem: &String| -> Option<usize> {
        let rest = problem.split_once("line ")?.1;
        rest.split_once(':')?.0.parse().ok()
    };
    let lines: Vec<_> = problems.iter().map(line).collect();
    let of_file = (1..=7).map(Some);
    assert_eq!(
        lines,
        of_file.chain([None, None]).collect::<Vec<_>>(),
        "{problems:#?}"
    );
}

#[test]
fn an_option_in_two_spellings_is_told() {
    let file = "listen_api = \"localhost:1\"\n\nlisten-api = \"localhost:2\"\n";
    let text = read(Some(file), &[], &[]).unwrap_err().to_string();
    let told = "line 3: listen-api: is given in line 1, too";
    assert!(text.contains(told), "{text}");
    let other = "listen_api = \"localhost:1\"\nlisten-http = \"localhost:2\"\n";
    assert!(read(Some(other), &[], &[]).is_ok());
}

/// What could never have the effect that was wanted is told, not taken.
#[test]
fn values_that_mean_nothing_are_refused() {
    for (option, value, flag, why) in [
        ("log-level", "loud", "--log-level", "names no level"),
        (
            "log-level",
            "info,utsuwa_ingress",
            "--log-level",
            "names no level",
        ),
        ("image-rewrites", "a=b=c", "--image-rewrite)", "FROM=TO"),
        (
            "insecure-registries",
            "http://x:5000",
            "--insecure-registry)",
            "HOST:PORT",
        ),
    ] {
        let text = read(None, &[], &[(option, value)]).unwrap_err().to_string();
        assert!(text.contains(flag) && text.contains(why), "{text}");
    }
    for level in ["warn", "INFO", "info,utsuwa_ingress=debug,hyper=off"] {
        let config = read(None, &[], &[("log-level", level)]).unwrap();
        assert_eq!(config.log_level, level);
    }
}

/// Seconds to us, minutes to who wrote it.
#[test]
fn a_time_needs_its_unit() {
    let text = read(Some("idle-timeout = \"15\"\n"), &[], &[])
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("with its unit, such as 30s, 15m or 1h"),
        "{text}"
    );
    assert!(read(Some("idle-timeout = 15\n"), &[], &[]).is_err());
    let config = read(None, &[], &[("idle-timeout", "15s")]).unwrap();
    assert_eq!(config.idle_timeout, Duration::from_secs(15));
}

/// However many rules of TOML a line breaks.
#[test]
fn a_broken_line_counts_once() {
    for broken in [
        "domain = \"x\n",
        "domain = 'x\n",
        "domain x\n",
        "[domain\n",
        "allow-egress = [\"a\" \"b\"]\n",
        "= 1\n",
        "domain = =\n",
        "idle-timeout = 15m\n",
        "domain = \"a\" \"b\"\n",
    ] {
        let text = read(Some(broken), &[], &[]).unwrap_err().to_string();
        assert!(text.contains("has 1 problem:"), "{broken}: {text}");
        assert!(text.contains("line 1: is not TOML"), "{broken}: {text}");
    }
}

#[test]
fn a_file_of_another_kind_is_called_so_once() {
    let told = |text: &str| read(Some(text), &[], &[]).unwrap_err().to_string();
    for other in [
        "One day a text\nof many lines\nwas given\nfor a\nconfiguration.\n",
        "{\n\"domain\": \"x\",\n\"project\": \"y\",\n\"region\": 1,\n\"user\": 2\n}\n",
        "#!/bin/sh\nset -e\na=$1\nif [ $a ]; then\n  echo 'x\nfi\nexit 0\n",
    ] {
        let text = told(other);
        assert!(text.contains("has 1 problem:"), "{text}");
        assert!(text.contains("is no configuration file: line "), "{text}");
        assert!(text.contains(" is not TOML: "), "{text}");
    }
    // Slips between options are told each.
    let slips = told("domain = \"x\"\na b\nc d\ne f\ng h\ni j\n");
    assert!(slips.contains("has 5 problems:"), "{slips}");
}

#[test]
fn what_was_given_at_the_first_start_holds_where_nothing_is_given_now() {
    let (none, given) = (Given::default(), |name, value: &str| Given {
        flags: BTreeMap::from([(name, vec![value.to_owned()])]),
        ..Given::default()
    });
    let frozen = utsuwa_store::Settings {
        project: "mine".parse().unwrap(),
        region: "us-central1".parse().unwrap(),
        domain: "run.example.com".to_owned(),
    };
    let with = |given: &Given| {
        let layers = Layers::read(given).unwrap();
        let config = layers.check().unwrap();
        let wanted = super::frozen::wanted(&layers, &config, Some(frozen.clone()));
        (wanted, super::frozen::differing(&layers, &config, &frozen))
    };
    assert_eq!(with(&none), (frozen.clone(), vec![]));
    assert_eq!(with(&given("region", "us-central1")).1, [""; 0]);
    let (wanted, differing) = with(&given("domain", "localhost"));
    assert_eq!(wanted.domain, "localhost");
    assert_eq!(differing.len(), 1);
    for part in [
        "domain = \"localhost\" (flag --domain)",
        "\"run.example.com\"",
        "--data-dir",
    ] {
        assert!(differing[0].contains(part), "{part}: {differing:?}");
    }
}

#[test]
fn a_broken_file_names_itself_and_the_place() {
    let broken = read(Some("domain = \n"), &[], &[]).unwrap_err().to_string();
    assert!(
        broken.contains("config.toml") && broken.contains("line 1"),
        "{broken}"
    );
    let unknown = read(Some("domian = \"x\"\n"), &[], &[])
        .unwrap_err()
        .to_string();
    assert!(
        unknown.contains("domian") && unknown.contains("no such option"),
        "{unknown}"
    );
    let typed = read(Some("domain = [1, 2]\n"), &[], &[])
        .unwrap_err()
        .to_string();
    assert!(
        typed.contains("domain") && typed.contains("must be"),
        "{typed}"
    );
}

#[test]
fn limits_of_the_data_path_are_read_and_checked() {
    let config = read(None, &[], &[]).unwrap();
    // The defaults of the options are those of the ingress.
    let defaults = IngressSettings {
        scanner_paths: config.ingress.scanner_paths.clone(),
        ..IngressSettings::default()
    };
    assert_eq!(config.ingress, defaults);
    assert!(config.ingress.scanner_paths.contains(&"/.env".to_owned()));
    let file = "body-timeout = \"5s\"\nmax-streams = 7\nmax-header-bytes = \"8Ki\"\nmax-waiting = 9\n\
                scanner-paths = [\"/a\", \"*.php\"]\nproxy-protocol-http = [\"10.0.0.0/8\", \"::1\"]\n";
    let ingress = read(Some(file), &[], &[]).unwrap().ingress;
    assert_eq!(
        (
            ingress.body_timeout.as_secs(),
            ingress.max_streams,
            ingress.max_header_bytes,
            ingress.max_waiting
        ),
        (5, 7, 8192, 9)
    );
    assert_eq!(ingress.scanner_paths, ["/a", "*.php"]);
    assert_eq!(ingress.proxies_http.len(), 2);
    let file = "header-timeout = \"0s\"\nmax-streams = 0\nmax-header-bytes = \"1Gi\"\nmax-waiting = \"many\"\n\
                scanner-paths = [\"env\", \"/*/*\"]\nproxy-protocol-http = [\"10.0.0.0/33\"]\nmax-control-frames = 1\n";
    let error = read(Some(file), &[], &[]).unwrap_err().to_string();
    for words in [
        "header-timeout",
        "max-streams",
        "max-header-bytes",
        "max-waiting",
        "\"env\"",
        "\"/*/*\"",
        "10.0.0.0/33",
        "max-control-frames",
    ] {
        assert!(error.contains(words), "{words}: {error}");
    }
}
