//! `WWW-Authenticate`: which proof a registry asks for.

/// One way to prove who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The challenges of one header value; unknown schemes are left out.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = header.trim();
    while !rest.is_empty() {
        let (scheme, after) = rest.split_once(' ').unwrap_or((rest, ""));
        let (parameters, next) = parameters(after);
        rest = next;
        let get = |name: &str| {
            parameters
                .iter()
                .find(|(key, _value)| key == name)
                .map(|(_key, value)| value.clone())
        };
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => challenges.push(Challenge::Basic),
            "bearer" => {
                if let Some(realm) = get("realm") {
                    challenges.push(Challenge::Bearer {
                        realm,
                        service: get("service"),
                        scope: get("scope"),
                    });
                }
            }
            _ => {}
        }
    }
    challenges
}

/// `name="value", name=value …`; ends where the next scheme begins.
fn parameters(mut text: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        text = text.trim_start_matches([' ', ',', '\t']);
        let end = text.find(['=', ' ', ',']).unwrap_or(text.len());
        if text.as_bytes().get(end) != Some(&b'=') {
            return (found, text);
        }
        let name = text[..end].to_ascii_lowercase();
        let after = &text[end + 1..];
        let (value, rest) = match after.strip_prefix('"') {
            Some(quoted) => quoted_value(quoted),
            None => {
                let end = after.find([',', ' ']).unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            }
        };
        found.push((name, value));
        text = rest;
    }
}

fn quoted_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, &text[index + 1..]),
            '\\' => value.extend(characters.next().map(|(_index, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_challenges_in_one_header() {
        let header = r#"Negotiate, Bearer realm="https://auth.example/token?a=b",service="registry \"x\"",scope="repository:a/b:pull,push", basic realm=x"#;
        let wanted = vec![
            Challenge::Bearer {
                realm: "https://auth.example/token?a=b".into(),
                service: Some("registry \"x\"".into()),
                scope: Some("repository:a/b:pull,push".into()),
            },
            Challenge::Basic,
        ];
        assert_eq!(parse(header), wanted);
        assert_eq!(parse("Basic realm=\"unclosed"), vec![Challenge::Basic]);
        assert_eq!(parse("Bearer service=x"), vec![]);
        assert_eq!(parse(""), vec![]);
    }
}
