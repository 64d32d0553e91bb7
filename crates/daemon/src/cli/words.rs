//! Words for people who read them here: the server's without what the API adds for scripts, short where a line is all there is, and
//! quoted where a shell is to read them.

/// How a paragraph begins that the API adds because people and scripts look for it. It guesses (a port, a timeout too short) where
/// the words before it know.
const GUESSES: [&str; 2] = [
    "The user-provided container failed to start and listen on the port",
    "The user-provided container failed the configured startup probe",
];

/// `message` without guesses that contradict the cause before them.
pub(super) fn cause(message: &str) -> String {
    let known: Vec<&str> = message
        .split("\n\n")
        .filter(|paragraph| !GUESSES.iter().any(|guess| paragraph.starts_with(guess)))
        .collect();
    match known.is_empty() {
        true => message.to_owned(),
        false => known.join("\n\n"),
    }
}

/// A cell of a table that fits beside others: a name, an address and two times have taken most of a line.
const CELL: usize = 72;

/// The first sentence of `text`, or as many whole words of it as a cell has room for.
pub(super) fn brief(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let sentence = match line.split_once(". ") {
        Some((first, _)) => format!("{first}."),
        None => line.to_owned(),
    };
    shortened(&sentence, CELL)
}

/// `text`, or its beginning and `…`, in at most `room` characters; cut between words where that leaves the better part.
pub(super) fn shortened(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let cut: String = text.chars().take(room.saturating_sub(1)).collect();
    let words = cut.rsplit_once(' ').map_or("", |(words, _)| words);
    let kept = if words.len() * 2 > cut.len() {
        words.trim_end_matches(',')
    } else {
        &cut
    };
    format!("{kept}…")
}

/// `text` as one word of a shell's.
pub(super) fn shell_quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_said_without_the_guess_that_contradicts_it() {
        for (message, said) in [
            (
                "The container exited with status 3 before it listened.\n\nThe user-provided container failed to start and listen on the \
                 port defined provided by the PORT=8080 environment variable within the allocated timeout. The health check timeout can \
                 be extended.",
                "The container exited with status 3 before it listened.",
            ),
            (
                "The startup probe never succeeded: HTTP status 500.\n\nThe user-provided container failed the configured startup probe \
                 checks.",
                "The startup probe never succeeded: HTTP status 500.",
            ),
            // Nothing else is known.
            (
                "The user-provided container failed to start and listen on the port 1.",
                "The user-provided container failed to start and listen on the port 1.",
            ),
            (
                "The user-provided container could not be started: no /app",
                "The user-provided container could not be started: no /app",
            ),
        ] {
            assert_eq!(cause(message), said);
        }
    }

    #[test]
    fn a_cell_has_a_sentence_that_fits() {
        assert_eq!(
            brief("Image 'a' not found. Check it.\nMore."),
            "Image 'a' not found."
        );
        let long = brief(&"word ".repeat(60));
        assert!(
            long.chars().count() <= CELL && long.ends_with("word…"),
            "{long}"
        );
        let unbroken = brief(&"ä".repeat(200));
        assert_eq!(unbroken.chars().count(), CELL);
    }
}
