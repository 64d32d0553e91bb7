use proptest::prelude::*;

use super::*;

fn bindings(pairs: &[(&str, &str)]) -> Bindings {
    pairs
        .iter()
        .map(|(f, v)| ((*f).to_owned(), (*v).to_owned()))
        .collect()
}

#[test]
fn googles_templates_match_what_they_should() {
    for (template, path, expected) in [
        (
            "/v2/{name=projects/*/locations/*/services/*}",
            "/v2/projects/p/locations/r/services/s",
            Some(vec![("name", "projects/p/locations/r/services/s")]),
        ),
        (
            "/v2/{name=projects/*/locations/*/services/*}",
            "/v2/projects/p/locations/r/services/s/",
            None,
        ),
        (
            "/v2/{name=projects/*/locations/*/services/*}",
            "/v2/projects/p/locations/r/services/",
            None,
        ),
        (
            "/v2/{name=projects/*/locations/*/services/*}",
            "/v2/projects/p/locations/r/services/s:getIamPolicy",
            None,
        ),
        (
            "/v2/{name=projects/*/locations/*/services/*}",
            "/v2/projects/p/locations/r/services/s/revisions",
            None,
        ),
        (
            "/v2/{resource=projects/*/locations/*/services/*}:getIamPolicy",
            "/v2/projects/p/locations/r/services/s:getIamPolicy",
            Some(vec![("resource", "projects/p/locations/r/services/s")]),
        ),
        (
            "/v2/{resource=projects/*/locations/*/services/*}:getIamPolicy",
            "/v2/projects/p/locations/r/services/s",
            None,
        ),
        (
            "/v2/{parent=projects/*/locations/*}/services",
            "/v2/projects/p/locations/r/services",
            Some(vec![("parent", "projects/p/locations/r")]),
        ),
        (
            "/v2/{service.name=projects/*}",
            "/v2/projects/a%20b",
            Some(vec![("service.name", "projects/a b")]),
        ),
        ("/v2/{service.name=projects/*}", "/v2/projects/a%2Fb", None),
        ("/v2/{service.name=projects/*}", "/v2/projects/a%2", None),
        (
            "/v1/{name=operations/**}",
            "/v1/operations/a/b/c",
            Some(vec![("name", "operations/a/b/c")]),
        ),
        ("/v1/{name=operations/**}", "/v1/operations", None),
        ("/v1/{id}/x", "/v1/7/x", Some(vec![("id", "7")])),
    ] {
        let expected = expected.map(|e| bindings(&e));
        assert_eq!(
            Template::parse(template).unwrap().matches(path),
            expected,
            "{template} on {path}"
        );
    }
}

#[test]
fn malformed_templates_are_refused() {
    for bad in [
        "",
        "v2",
        "/",
        "/a//b",
        "/{a",
        "/{=x}",
        "/{a=**}/b",
        "/a:",
        "/{a=}",
        "/a*",
    ] {
        assert!(Template::parse(bad).is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn what_is_expanded_is_matched(project in "[^/]{1,12}", name in "[^/]{1,12}") {
        let template = Template::parse("/v2/{name=projects/*/locations/*}/things:go").unwrap();
        let values = bindings(&[("name", &format!("projects/{project}/locations/{name}"))]);
        let path = template.expand(&values).unwrap();
        prop_assert_eq!(template.matches(&path), Some(values));
    }

    #[test]
    fn no_path_makes_it_panic(path in ".{0,60}") {
        for template in ["/v2/{name=projects/*/locations/*/services/*}", "/{a=**}", "/v1/{x}/y:z"] {
            let _ = Template::parse(template).unwrap().matches(&path);
        }
    }

    #[test]
    fn no_template_makes_it_panic(text in "[/{}=*:a-z]{0,24}") {
        let _ = Template::parse(&text);
    }

    #[test]
    fn percent_encoding_is_undone(text in ".{0,40}") {
        prop_assert_eq!(percent_decode(&percent_encode(&text)), Some(text));
    }
}
