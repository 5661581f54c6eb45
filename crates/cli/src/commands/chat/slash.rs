//! The /commands of a conversation.

/// Every command: its names, what may follow it, what it does.
pub(crate) const COMMANDS: &[(&[&str], &str, &str)] = &[
    (&["/help", "/?"], "", "this list"),
    (&["/clear"], "", "forget the conversation, keep the system message"),
    (&["/system"], "[TEXT]", "show the system message or replace it and start over"),
    (&["/set"], "[NAME [VALUE]]", "show the settings, or change one"),
    (&["/stats"], "", "show how fast the last answers were, or stop showing it"),
    (&["/retry"], "", "have the last answer written again"),
    (&["/undo"], "", "forget the last question and its answer"),
    (&["/save"], "FILE", "write the conversation to a file"),
    (&["/load"], "FILE", "go on with a conversation from a file"),
    (&["/exit", "/quit", "/bye"], "", "leave, as Ctrl-D does"),
];

/// A parsed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Slash {
    Help,
    Clear,
    /// `None` shows it.
    System(Option<String>),
    /// Name and value; without a value, shows; without a name, shows all.
    Set(Option<(String, Option<String>)>),
    Stats,
    Retry,
    Undo,
    Save(String),
    Load(String),
    Exit,
}

/// Parses a message that starts with a slash; `None` if it is an ordinary message.
///
/// A slash that is followed by something other than letters, as in a path, is no command.
pub(crate) fn parse(text: &str) -> Option<Result<Slash, String>> {
    let text = text.trim();
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let letters = name.strip_prefix('/')?;
    if letters != "?" && (letters.is_empty() || !letters.chars().all(|c| c.is_ascii_alphabetic())) {
        return None;
    }
    let rest = rest.trim();
    let given = (!rest.is_empty()).then(|| rest.to_owned());
    let canonical = COMMANDS.iter().find(|(names, ..)| names.contains(&name)).map(|c| c.0[0]);
    let needs_file = || format!("{name} needs the name of a file");
    Some(match canonical {
        Some("/help") => Ok(Slash::Help),
        Some("/clear") => Ok(Slash::Clear),
        Some("/system") => Ok(Slash::System(given)),
        Some("/set") => {
            Ok(Slash::Set(given.map(|given| match given.split_once(char::is_whitespace) {
                Some((name, value)) => (name.to_owned(), Some(value.trim().to_owned())),
                None => (given, None),
            })))
        }
        Some("/stats") => Ok(Slash::Stats),
        Some("/retry") => Ok(Slash::Retry),
        Some("/undo") => Ok(Slash::Undo),
        Some("/save") => given.map(Slash::Save).ok_or_else(needs_file),
        Some("/load") => given.map(Slash::Load).ok_or_else(needs_file),
        Some("/exit") => Ok(Slash::Exit),
        _ => Err(format!("there is no command {name}: /help lists them")),
    })
}

/// The list that `/help` prints.
pub(crate) fn help() -> String {
    let mut text = String::new();
    for (names, what, meaning) in COMMANDS {
        let usage = format!("{} {what}", names.join(", "));
        text.push_str(&format!("  {usage:<24} {meaning}\n"));
    }
    text.push_str(
        "\n  A line that ends in \\ goes on in the next one; so does everything between \"\"\" and \
         \"\"\".\n  Ctrl-C stops an answer, Ctrl-D leaves.",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_command_is_understood() {
        for (names, argument, _) in COMMANDS {
            for name in *names {
                let text = if *argument == "FILE" { format!("{name} x") } else { (*name).into() };
                assert!(matches!(parse(&text), Some(Ok(_))), "{text}");
                assert!(help().contains(name));
            }
        }
    }

    #[test]
    fn arguments_are_taken_apart() {
        for (text, parsed) in [
            ("/system You are terse. ", Slash::System(Some("You are terse.".into()))),
            ("/set", Slash::Set(None)),
            ("/set top_k", Slash::Set(Some(("top_k".into(), None)))),
            ("/set stop  a b", Slash::Set(Some(("stop".into(), Some("a b".into()))))),
            ("/save my talk.json", Slash::Save("my talk.json".into())),
        ] {
            assert_eq!(parse(text), Some(Ok(parsed)), "{text}");
        }
    }

    #[test]
    fn paths_and_plain_text_are_no_commands() {
        for text in ["hello", "/usr/bin is a folder", "/", "/2 is a half", "what is /help?"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert!(matches!(parse("/nonsense"), Some(Err(_))));
        assert!(matches!(parse("/save"), Some(Err(_))));
    }
}
