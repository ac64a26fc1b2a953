//! Which characters nobody sees. Two texts that differ in one of them look the same to whoever
//! compares them.

use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory};
use icu_properties::{CodePointMapData, CodePointSetData};

/// Assigned, no format characters, and blank all the same: the empty Braille pattern, the null
/// notehead, the filler of the Khitan script, and what stands for an object.
const BLANK: [char; 4] = ['\u{2800}', '\u{1d159}', '\u{16fe4}', '\u{fffc}'];

/// Whether `c` cannot be seen, or not be told from others: control and format characters, what
/// Unicode says that fonts show nothing for, what looks blank, and what no font knows. White
/// space is another matter.
pub fn is_invisible(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    let category = CodePointMapData::<GeneralCategory>::new().get(c);
    matches!(
        category,
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::Unassigned
            | GeneralCategory::PrivateUse
    ) || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
        || BLANK.contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_font_shows_is_invisible() {
        for c in "\u{0}\u{7f}\u{85}\u{ad}\u{34f}\u{61c}\u{115f}\u{1160}\u{17b4}\u{180b}\u{180e}\u{200b}\u{200d}\
            \u{202e}\u{2060}\u{2800}\u{3164}\u{fe0f}\u{feff}\u{ffa0}\u{fff0}\u{fffb}\u{fffc}\u{e000}\u{16fe4}\u{1bca0}\
            \u{1d159}\u{1d173}\u{e0041}\u{e0100}\u{10ffff}"
            .chars()
        {
            assert!(is_invisible(c), "U+{:04X}", u32::from(c));
        }
    }

    #[test]
    fn what_people_write_is_visible() {
        for c in "aZ09 -/.,#éÉßमु\u{93f}\u{301}字ا€∆😀".chars() {
            assert!(!is_invisible(c), "U+{:04X}", u32::from(c));
        }
    }
}
