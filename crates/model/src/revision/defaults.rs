//! Names of revisions (§1.7), and whether a revision is what a template asks for.

use super::Revision;
use crate::RevisionId;
use crate::ServiceId;
use crate::name::NameError;
use crate::service::RevisionTemplate;

/// Letters without `s`, `f`, `k`, `c` at the places where they would make words nobody wants to read.
const FIRST: &[u8] = b"bdghjlmnpqrtvwxz";
const VOWELS: &[u8] = b"aeiou";
const LAST: &[u8] = b"bdhjlmpqrvwz";

/// `{service}-{generation as %05d}-{consonant, vowel, consonant}`: `hello-00003-xub`. `chance` picks the letters; if the name is
/// taken, ask again with another number.
///
/// # Errors
/// Never for a service id and a generation below 10⁹; the type of the name checks it.
pub fn automatic_name(
    service: &ServiceId,
    generation: u64,
    chance: u64,
) -> Result<RevisionId, NameError> {
    let pick = |letters: &[u8], divisor: u64| {
        let index = (chance / divisor) % letters.len() as u64;
        char::from(letters[usize::try_from(index).unwrap_or(0)])
    };
    let (first, vowel, last) = (pick(FIRST, 1), pick(VOWELS, 16), pick(LAST, 80));
    format!("{service}-{generation:05}-{first}{vowel}{last}").parse()
}

impl Revision {
    /// Whether deploying `template` under this revision's name means this very revision (a legal way back to it).
    #[must_use]
    pub fn is_made_from(&self, template: &RevisionTemplate) -> bool {
        let unnamed = |t: &RevisionTemplate| RevisionTemplate {
            revision: None,
            ..t.clone()
        };
        unnamed(&self.template).same_as(&unnamed(template))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_look_like_googles_and_differ_by_chance() {
        let service: ServiceId = "hello".parse().expect("ok");
        let name = |chance| automatic_name(&service, 3, chance).expect("ok").to_string();
        assert_eq!(name(0), "hello-00003-bab");
        assert!(name(u64::MAX).starts_with("hello-00003-"));
        let mut all: Vec<String> = (0..960).map(name).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 16 * 5 * 12);
        let longest: ServiceId = "a".repeat(49).parse().expect("ok");
        assert!(automatic_name(&longest, 999_999_999, 1).is_ok());
    }
}
