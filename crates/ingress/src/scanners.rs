//! Paths that scanners ask every server for: `/.env`, `/wp-login.php` and the like. A service that asks for it
//! (`utsuwa.local/refuse-scanners`) answers them 404 without waking, and without staying awake for them.
//!
//! Invariant: nothing is allocated for a path in lower case.

use std::borrow::Cow;
use std::collections::HashSet;

/// Compiled patterns.
#[derive(Debug, Default)]
pub(crate) struct Scanners {
    exact: HashSet<Box<str>>,
    /// Beginning and end of paths that have anything between.
    shapes: Vec<(Box<str>, Box<str>)>,
}

impl Scanners {
    /// Of paths in any case, each with one `*` at most.
    pub(crate) fn new(patterns: &[String]) -> Self {
        let mut all = Self::default();
        for pattern in patterns {
            let pattern = pattern.to_ascii_lowercase();
            match pattern.split_once('*') {
                Some((begin, end)) => all.shapes.push((begin.into(), end.into())),
                None => {
                    all.exact.insert(pattern.into());
                }
            }
        }
        all
    }

    /// Whether `path` (without query) is one of them, in whatever case and after however many slashes.
    pub(crate) fn ask_for(&self, path: &str) -> bool {
        let extra = path
            .bytes()
            .take_while(|byte| *byte == b'/')
            .count()
            .saturating_sub(1);
        let path = path.get(extra..).unwrap_or(path);
        let path = if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(path.to_ascii_lowercase())
        } else {
            Cow::Borrowed(path)
        };
        self.exact.contains(path.as_ref())
            || self.shapes.iter().any(|(begin, end)| {
                path.len() >= begin.len() + end.len()
                    && path.starts_with(&**begin)
                    && path.ends_with(&**end)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_shapes_in_any_case() {
        let patterns = ["/.env", "/.git/*", "*/wlwmanifest.xml", "/Shell*.PHP"].map(str::to_owned);
        let scanners = Scanners::new(&patterns);
        for yes in [
            "/.env",
            "/.ENV",
            "//.env",
            "/.git/",
            "/.git/config",
            "/a/b/wlwmanifest.xml",
            "/shell.php",
            "/shell20.php",
        ] {
            assert!(scanners.ask_for(yes), "{yes}");
        }
        for no in [
            "/",
            "",
            "/.environment",
            "/a/.env",
            "/.git",
            "/wlwmanifest.xml.html",
            "/shell.phtml",
            "*",
            "/é",
        ] {
            assert!(!scanners.ask_for(no), "{no}");
        }
        assert!(!Scanners::new(&[]).ask_for("/.env"));
    }
}
