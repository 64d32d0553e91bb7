//! Names that revisions get on their own.

use utsuwa_model::ServiceId;

/// The automatic name `{service}-{generation:05}-{consonant}{vowel}{consonant}` (§1.7), from `chance`. At most 63 characters:
/// a service's name has 49 at most.
#[must_use]
pub fn automatic_name(service: &ServiceId, generation: u64, chance: u64) -> String {
    const CONSONANTS: &[u8] = b"bcdfghjklmnpqrstvwxz";
    const VOWELS: &[u8] = b"aeiou";
    let mut chance = chance;
    loop {
        let mut draw = |letters: &[u8]| {
            let count = u64::try_from(letters.len()).unwrap_or(1);
            let index = usize::try_from(chance % count).unwrap_or(0);
            chance = chance / count + 0x9e37;
            char::from(letters[index])
        };
        let letters = [draw(CONSONANTS), draw(VOWELS), draw(CONSONANTS)];
        let suffix: String = letters.iter().collect();
        if !UNKIND.contains(&suffix.as_str()) {
            return format!("{service}-{generation:05}-{suffix}");
        }
    }
}

/// Three-letter words nobody wants in a name they show around.
const UNKIND: [&str; 14] = [
    "cum", "dic", "dik", "fag", "fuc", "fuk", "gay", "jap", "jew", "kik", "nig", "pis", "sex",
    "tit",
];

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use utsuwa_model::RevisionId;

    use super::*;

    #[test]
    fn names_are_well_formed_and_kind() {
        let service: ServiceId = "a".repeat(49).parse().unwrap();
        for chance in 0..5000 {
            let name = automatic_name(&service, 3, chance);
            assert!(name.parse::<RevisionId>().is_ok(), "{name}");
            assert!(!UNKIND.contains(&&name[name.len() - 3..]));
        }
        let hello = automatic_name(&"hello".parse().unwrap(), 3, 0);
        assert!(
            hello.starts_with("hello-00003-") && hello.len() == 15,
            "{hello}"
        );
    }
}
