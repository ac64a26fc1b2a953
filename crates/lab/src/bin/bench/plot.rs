//! Horizontal bars as SVG: legible on light and on dark pages, without a script or a font.

use std::fmt::Write as _;

/// One bar, and what is written at its end.
pub struct Bar {
    pub label: String,
    pub value: f64,
    pub text: String,
}

const WIDTH: f64 = 760.0;
const LABEL_WIDTH: f64 = 210.0;
const TEXT_WIDTH: f64 = 150.0;
const ROW_HEIGHT: f64 = 30.0;
const BAR_HEIGHT: f64 = 18.0;
const TITLE_HEIGHT: f64 = 40.0;
const COLOURS: [&str; 2] = ["#2f7ed8", "#8b98a5"];

/// Draws the bars from the top, in proportion to the longest. The `marked` ones stand out.
pub fn bars(title: &str, bars: &[Bar], marked: impl Fn(&Bar) -> bool) -> String {
    let height = ROW_HEIGHT.mul_add(bars.len() as f64, TITLE_HEIGHT + 10.0);
    let longest = bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABEL_WIDTH - TEXT_WIDTH) / longest;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         font-family=\"sans-serif\" font-size=\"14\" fill=\"#77818c\" role=\"img\">\n<title>{title}</title>\n\
         <text x=\"0\" y=\"22\" font-size=\"16\" font-weight=\"bold\">{title}</text>\n",
        title = escaped(title),
    );
    for (row, bar) in bars.iter().enumerate() {
        let top = ROW_HEIGHT.mul_add(row as f64, TITLE_HEIGHT);
        let length = (bar.value * scale).max(1.0);
        let (colour, baseline) = (COLOURS[usize::from(!marked(bar))], top + 14.0);
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{baseline:.0}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LABEL_WIDTH:.0}\" y=\"{top:.0}\" width=\"{length:.1}\" height=\"{BAR_HEIGHT:.0}\" rx=\"3\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{baseline:.0}\">{}</text>",
            LABEL_WIDTH - 10.0,
            escaped(&bar.label),
            LABEL_WIDTH + length + 8.0,
            escaped(&bar.text),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_drawn_in_proportion() {
        let bar = |label: &str, value| Bar { label: label.to_owned(), value, text: format!("{value}") };
        let svg = bars("jobs/s <all>", &[bar("a & b", 50.0), bar("c", 100.0)], |bar| bar.label == "c");
        assert!(svg.contains("jobs/s &lt;all&gt;") && svg.contains("a &amp; b"), "{svg}");
        assert!(svg.contains("width=\"200.0\"") && svg.contains("width=\"400.0\""), "{svg}");
        assert_eq!(svg.matches(COLOURS[0]).count(), 1, "{svg}");
        assert!(svg.ends_with("</svg>\n"));
    }

    #[test]
    fn nothing_can_be_drawn_of_nothing() {
        assert!(bars("empty", &[], |_| true).contains("</svg>"));
        let zero = Bar { label: "zero".to_owned(), value: 0.0, text: "0".to_owned() };
        assert!(bars("zero", &[zero], |_| false).contains("width=\"1.0\""));
    }
}
