//! Characters that word processors, web pages and chat programs put in place of those that were typed.

use std::fmt;

/// The first character of a text that looks like another one, or like nothing, with what is probably meant.
///
/// # Examples
/// ```
/// let pasted = knockd_core::pasted("\u{201d}-i eth1").unwrap();
/// assert_eq!(pasted.to_string(), "there is a curly quote (U+201D); type `\"`");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct Pasted {
    /// Its offset in the text, in bytes.
    pub offset: usize,
    /// The character.
    pub character: char,
    /// What people call it.
    pub name: &'static str,
    /// What is probably meant; `None` if nothing is.
    pub meant: Option<&'static str>,
}

/// What they are called, what is probably meant, and the characters.
const LOOK_ALIKES: [(&str, Option<&str>, &[char]); 8] = [
    (
        "curly quote",
        Some("`\"`"),
        &['\u{201c}', '\u{201d}', '\u{201e}', '\u{201f}', '\u{ab}', '\u{bb}', '\u{2033}'],
    ),
    ("curly quote", Some("`'`"), &['\u{2018}', '\u{2019}', '\u{201a}', '\u{201b}', '\u{2032}', '\u{b4}']),
    ("en dash", Some("`-`"), &['\u{2013}']),
    ("dash", Some("`-`"), &['\u{2010}', '\u{2011}', '\u{2012}', '\u{2014}', '\u{2015}', '\u{2212}']),
    ("no-break space", Some("a plain space"), &['\u{a0}', '\u{202f}', '\u{2007}']),
    ("zero-width space", None, &['\u{200b}', '\u{feff}']),
    (
        "invisible character",
        None,
        &[
            '\u{ad}', '\u{200c}', '\u{200d}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202b}', '\u{202c}',
            '\u{202d}', '\u{202e}', '\u{2060}', '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}',
        ],
    ),
    ("full-width character", Some("the plain one"), &['\u{ff0c}', '\u{ff1a}', '\u{ff1d}', '\u{3000}']),
];

/// Returns the first such character of a text, if there is one.
pub fn pasted(text: &str) -> Option<Pasted> {
    text.char_indices().filter(|(_, character)| !character.is_ascii()).find_map(|(offset, character)| {
        let (name, meant, _) = LOOK_ALIKES.iter().find(|(.., of)| of.contains(&character))?;
        Some(Pasted { offset, character, name, meant: *meant })
    })
}

impl Pasted {
    /// Returns its name and its number, such as `en dash (U+2013)`.
    pub fn title(&self) -> String {
        format!("{} (U+{:04X})", self.name, u32::from(self.character))
    }
}

/// Prints a hint: `there is an en dash (U+2013); type '-'`.
impl fmt::Display for Pasted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let article = if self.name.starts_with(['e', 'i']) { "an" } else { "a" };
        write!(f, "there is {article} {}; ", self.title())?;
        match self.meant {
            Some(meant) => write!(f, "type {meant}"),
            None => f.write_str("delete it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_is_not_what_it_looks_like_is_named_with_its_number_and_the_remedy() {
        for (text, offset, hint) in [
            ("a \u{201c}b\u{201d}", 2, "there is a curly quote (U+201C); type `\"`"),
            ("it\u{2019}s", 2, "there is a curly quote (U+2019); type `'`"),
            ("\u{e9} \u{2013}I", 3, "there is an en dash (U+2013); type `-`"),
            ("\u{2212}1", 0, "there is a dash (U+2212); type `-`"),
            ("a\u{a0}b", 1, "there is a no-break space (U+00A0); type a plain space"),
            ("\u{200b}", 0, "there is a zero-width space (U+200B); delete it"),
            ("\u{202e}x", 0, "there is an invisible character (U+202E); delete it"),
        ] {
            let pasted = pasted(text).unwrap();
            assert_eq!((pasted.offset, pasted.to_string().as_str()), (offset, hint), "{text:?}");
        }
    }

    #[test]
    fn letters_of_any_language_are_what_they_look_like() {
        assert_eq!(pasted("\"it's\" -I \u{e9} \u{434}\u{432}\u{435}\u{440}\u{44c} \u{9580} \u{1f6aa}"), None);
    }

    #[test]
    fn no_character_is_listed_twice() {
        let mut all: Vec<_> = LOOK_ALIKES.iter().flat_map(|(.., of)| of.iter()).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
