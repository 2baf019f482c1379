//! Curves as inline SVG. Colours and fonts are the page's (classes `axis`, `grid`, `line c0` …), so they follow its theme.

use std::fmt::Write;

use super::escape::html;

const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 38.0;

/// One curve of a [`Chart`].
pub(super) struct Line {
    /// What the legend calls it.
    pub(super) name: String,
    /// From left to right.
    pub(super) points: Vec<(f64, f64)>,
    /// How it is drawn.
    pub(super) style: LineStyle,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LineStyle {
    /// A thin line in the background, without an entry in the legend.
    Faint,
    /// A line.
    Plain,
    /// A line with a dot at each point.
    Dots,
}

/// Some curves over one axis.
pub(super) struct Chart<'a> {
    /// What a screen reader says.
    pub(super) title: &'a str,
    /// What is along the x axis.
    pub(super) x: &'a str,
    /// The curves.
    pub(super) lines: Vec<Line>,
    /// A place on the x axis that is marked.
    pub(super) mark: Option<f64>,
    /// Whether the y axis begins at 0 or where the curves do.
    pub(super) floor: Floor,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Floor {
    Zero,
    Data,
}

impl Chart<'_> {
    /// The SVG with its legend, or nothing where there is no point.
    pub(super) fn svg(&self) -> String {
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let (Some(xs), Some(mut ys)) = (Range::of(all().map(|p| p.0)), Range::of(all().map(|p| p.1))) else {
            return String::new();
        };
        if self.floor == Floor::Zero {
            ys.low = ys.low.min(0.0);
        }
        let (xs, ys) = (xs.widened(0.0), ys.widened(0.04));
        let place = |(x, y): (f64, f64)| {
            let right = LEFT + (WIDTH - LEFT - RIGHT) * xs.share(x);
            (right, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * ys.share(y))
        };
        let mut out =
            format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", html(self.title));
        self.axes(&mut out, xs, ys, place);
        if let Some(mark) = self.mark {
            let (x, _) = place((mark, ys.low));
            let _ = write!(out, "<path class=\"mark\" d=\"M{x:.1} {TOP}V{:.1}\"/>", HEIGHT - BOTTOM);
        }
        // Curves of the same colour are a faint one and its smoothed one.
        let mut color = 0;
        for line in &self.lines {
            draw(&mut out, line, color, place);
            color += usize::from(line.style != LineStyle::Faint);
        }
        out + "</svg>" + &self.legend()
    }

    fn axes(&self, out: &mut String, xs: Range, ys: Range, place: impl Fn((f64, f64)) -> (f64, f64)) {
        let bottom = HEIGHT - BOTTOM;
        let (x_ticks, y_ticks) = (xs.ticks(6), ys.ticks(5));
        for &y in &y_ticks {
            let (_, at) = place((xs.low, y));
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{}\"/><text class=\"axis\" x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 7.0,
                at + 4.0,
                label(y, &y_ticks)
            );
        }
        for &x in &x_ticks {
            let (at, _) = place((x, ys.low));
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{at:.1} {bottom}v4\"/><text class=\"axis\" x=\"{at:.1}\" y=\"{}\" \
                 text-anchor=\"middle\">{}</text>",
                bottom + 16.0,
                label(x, &x_ticks)
            );
        }
        let _ = write!(
            out,
            "<text class=\"axis\" x=\"{:.0}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 4.0,
            html(self.x)
        );
    }

    fn legend(&self) -> String {
        let named = self.lines.iter().filter(|line| line.style != LineStyle::Faint);
        let entries: Vec<String> = named
            .enumerate()
            .map(|(i, line)| format!("<span><i class=\"c{}\"></i>{}</span>", i % 6, html(&line.name)))
            .collect();
        if entries.len() < 2 { String::new() } else { format!("<p class=\"legend\">{}</p>", entries.concat()) }
    }
}

fn draw(out: &mut String, line: &Line, color: usize, place: impl Fn((f64, f64)) -> (f64, f64)) {
    let style = if line.style == LineStyle::Faint { "line faint" } else { "line" };
    let color = color % 6;
    let _ = write!(out, "<path class=\"{style} c{color}\" d=\"");
    for (i, &point) in line.points.iter().enumerate() {
        let (x, y) = place(point);
        let _ = write!(out, "{}{x:.1} {y:.1}", if i == 0 { 'M' } else { 'L' });
    }
    out.push_str("\"/>");
    if line.style == LineStyle::Dots || line.points.len() == 1 {
        for &(x, y) in &line.points {
            let (at_x, at_y) = place((x, y));
            let _ = write!(
                out,
                "<circle class=\"dot c{color}\" cx=\"{at_x:.1}\" cy=\"{at_y:.1}\" r=\"3\"><title>{}: {} at \
                 {}</title></circle>",
                html(&line.name),
                number(y),
                number(x)
            );
        }
    }
}

/// A running mean over about a fiftieth of the points, to lay over what is noisy.
pub(super) fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 50.0).max(1.0);
    let mut mean = None;
    let next = |&(x, y): &(f64, f64)| {
        let value = mean.map_or(y, |mean| keep * mean + (1.0 - keep) * y);
        mean = Some(value);
        (x, value)
    };
    points.iter().map(next).collect()
}

/// From the least to the largest value.
#[derive(Clone, Copy)]
struct Range {
    low: f64,
    high: f64,
}

impl Range {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let widen = |range: Option<Self>, value: f64| match range {
            Some(Self { low, high }) => Some(Self { low: low.min(value), high: high.max(value) }),
            None => Some(Self { low: value, high: value }),
        };
        values.filter(|value| value.is_finite()).fold(None, widen)
    }

    /// A little more room, and some where there is none.
    fn widened(self, share: f64) -> Self {
        let room = (self.high - self.low) * share;
        let least = if self.high > self.low { 0.0 } else { 0.5 * self.high.abs().max(1e-3) };
        let low = if self.low == 0.0 { 0.0 } else { self.low - room - least };
        Self { low, high: self.high + room + least }
    }

    fn share(self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// Round numbers within the range, at most about `count`.
    fn ticks(self, count: usize) -> Vec<f64> {
        let rough = (self.high - self.low) / count as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|s| s * power).into_iter().find(|s| *s >= rough * 0.999);
        let step = step.unwrap_or(rough);
        let first = (self.low / step - 1e-9).ceil();
        (0..=2 * count).map(|i| (first + i as f64) * step).take_while(|x| *x <= self.high + step * 1e-9).collect()
    }
}

/// A tick with as many digits as tell it from its neighbours.
fn label(value: f64, ticks: &[f64]) -> String {
    let step = ticks.windows(2).map(|pair| (pair[1] - pair[0]).abs()).fold(f64::INFINITY, f64::min);
    let (wanted, usual) = (-(step * 1.001).log10().floor(), 3.0 - value.abs().log10().floor());
    if value.abs() >= 1e-2 && wanted > usual && wanted <= 12.0 {
        return format!("{value:.*}", wanted as usize);
    }
    number(value)
}

/// A number in a text.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if size < 1e-12 {
        return "0".to_string();
    }
    if !(1e-3..1e6).contains(&size) {
        return format!("{value:.1e}").replace(".0e", "e");
    }
    let text = format!("{value:.*}", (3 - size.log10().floor() as i32).clamp(0, 5) as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> String {
        let lines = vec![Line { name: "<loss>".into(), points, style: LineStyle::Dots }];
        Chart { title: "a & b", x: "epoch", lines, mark: None, floor: Floor::Data }.svg()
    }

    #[test]
    fn axes_have_round_numbers() {
        assert_eq!(Range { low: 0.0, high: 23.0 }.ticks(5), [0.0, 5.0, 10.0, 15.0, 20.0]);
        assert_eq!(Range { low: -0.3, high: 0.3 }.ticks(3).len(), 3);
        assert_eq!([14.2051, 14.2052].map(|tick| label(tick, &[14.2051, 14.2052])), ["14.2051", "14.2052"]);
        assert_eq!(label(14.205, &[14.2, 14.205]), "14.205");
        assert_eq!(label(20.0, &[10.0, 20.0]), "20");
        for (value, text) in [(0.0, "0"), (5e-5, "5e-5"), (0.25, "0.25"), (20.0, "20"), (1234.0, "1234"), (1e7, "1e7")]
        {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn any_curve_is_drawn_within_its_frame() {
        for points in [
            vec![(1.0, 1.0)],
            vec![(0.0, 0.0), (0.0, 0.0)],
            vec![(0.0, -1e300), (1.0, 1e300)],
            vec![(1.0, 4.0), (2.0, 3.0), (3.0, 3.5)],
        ] {
            let svg = chart(points.clone());
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?}: {svg}");
            assert!(svg.contains("&lt;loss&gt;") && svg.contains("a &amp; b") && !svg.contains("<loss>"));
        }
        assert_eq!(chart(vec![]), "");
    }
}
