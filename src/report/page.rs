//! [`ReportPage`]: one HTML file about a run, with nothing outside of it and no script.

use std::fmt::Write as _;
use std::path::Path;

use super::chart::{Chart, Floor, Line, LineStyle, number, smoothed};
use super::escape::{base64, html};
use super::{Gallery, History, Picture, Retrieved, Series};
use crate::Result;
use crate::retrieval::{Recall, RetrievalReport};
use crate::train::WisePoint;
use crate::weights::write_atomic;

/// The curve over α of [`WiseFt`](crate::train::WiseFt), for a report.
#[derive(Debug, Clone, PartialEq)]
pub struct AlphaCurve {
    /// What the target is, as "text→image R@1".
    pub target: String,
    /// What the canary is, as "CIFAR-10 top-1".
    pub canary: String,
    /// The points, by rising α.
    pub points: Vec<WisePoint>,
    /// The α that was taken.
    pub chosen: Option<f64>,
}

/// A report of a run: recalls before and after, curves, retrievals, recipe.
#[derive(Debug, Clone)]
pub struct ReportPage<'a> {
    title: String,
    history: &'a History,
    before: Option<RetrievalReport>,
    after: Option<RetrievalReport>,
    notes: Vec<String>,
    recipe: Vec<(String, String)>,
    command: Option<String>,
    alpha: Option<AlphaCurve>,
    gallery: Option<&'a Gallery>,
}

impl<'a> ReportPage<'a> {
    /// A page about what `history` holds.
    #[must_use]
    pub fn new(title: impl Into<String>, history: &'a History) -> Self {
        Self {
            title: title.into(),
            history,
            before: history.before(),
            after: history.after(),
            notes: Vec::new(),
            recipe: Vec::new(),
            command: None,
            alpha: None,
            gallery: None,
        }
    }

    /// What the model did before training, where that is not the evaluation before the first step (but one of other rows, say).
    #[must_use]
    pub fn before(mut self, report: RetrievalReport) -> Self {
        self.before = Some(report);
        self
    }

    /// What the model that was saved does, where that is not the last evaluation (after interpolation, say).
    #[must_use]
    pub fn after(mut self, report: RetrievalReport) -> Self {
        self.after = Some(report);
        self
    }

    /// A sentence at the top, about something the reader must know.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// The recipe, as names and values.
    #[must_use]
    pub fn recipe(mut self, recipe: impl IntoIterator<Item = (String, String)>) -> Self {
        self.recipe.extend(recipe);
        self
    }

    /// The command that made the model ([`shown_command`](super::shown_command)).
    #[must_use]
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.command = Some(command.into());
        self
    }

    /// The curve over α.
    #[must_use]
    pub fn alpha(mut self, curve: AlphaCurve) -> Self {
        self.alpha = Some(curve);
        self
    }

    /// The best and the worst retrievals.
    #[must_use]
    pub fn gallery(mut self, gallery: &'a Gallery) -> Self {
        self.gallery = Some(gallery);
        self
    }

    /// Writes the page to `path`, completely or not at all.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) if it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomic(path, |out| out.write_all(self.html().as_bytes()))
    }

    /// The page.
    #[must_use]
    pub fn html(&self) -> String {
        let title = html(&self.title);
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<meta name=\"generator\" content=\"diptych\">\n\
             <title>{title}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n",
            include_str!("page.css")
        );
        self.head(&mut out);
        self.recalls(&mut out);
        self.curves(&mut out);
        self.alphas(&mut out);
        if let Some(gallery) = self.gallery {
            retrievals(
                &mut out,
                "Found best",
                "whose own image (outlined) is ahead of every other by most",
                &gallery.best,
                gallery,
            );
            let what = "whose own image (outlined) came furthest down; look here for wrong captions, too";
            retrievals(&mut out, "Found worst", what, &gallery.worst, gallery);
        }
        self.how(&mut out);
        out + "</main>\n</body>\n</html>\n"
    }

    fn head(&self, out: &mut String) {
        if let Some(last) = self.history.last {
            let _ = writeln!(out, "<p class=\"soft\">{} steps in {} epochs</p>", last.step, last.epoch);
        }
        for note in &self.notes {
            let _ = writeln!(out, "<p class=\"card note\">{}</p>", html(note));
        }
        out.push_str("<div class=\"tiles\">\n");
        let mut tile = |value: &str, what: &str| {
            let _ = writeln!(out, "<div class=\"tile\"><b>{value}</b><span>{what}</span></div>");
        };
        if let Some(after) = self.after {
            let before = self.before;
            for (name, pick) in DIRECTIONS {
                let now = pick(&after).r1;
                let change = before.map(|before| now - pick(&before).r1).map(signed).unwrap_or_default();
                tile(&format!("{now:.1} %"), &format!("{name} R@1 {change}"));
            }
        }
        if let Some(&(_, loss)) = smoothed(self.history.loss.points()).last() {
            tile(&format!("{loss:.3}"), "loss at the end");
        }
        let speeds = self.history.pairs_per_second.points();
        if let Some(&(_, speed)) = speeds.last() {
            tile(&number(speed), "images a second");
        }
        out.push_str("</div>\n");
    }

    fn recalls(&self, out: &mut String) {
        let (Some(before), after) = (self.before.or(self.after), self.after) else { return };
        let had = self.before.is_some();
        let _ = writeln!(
            out,
            "<h2>Recall before and after</h2>\n<p class=\"soft\">How many of {} captions find their image among the first 1, 5 and \
             10 of {} images, and how many images find one of their captions; in percent.</p>\n<div class=\"card scroll\"><table>\n\
             <tr><th></th><th class=\"n\">before</th><th class=\"n\">after</th><th class=\"n\">change</th></tr>",
            before.captions, before.images
        );
        for (name, pick) in DIRECTIONS {
            for (k, at) in RECALLS {
                let old = had.then(|| at(&pick(&before)));
                let new = after.map(|after| at(&pick(&after)));
                let shown = |value: Option<f64>| value.map_or("–".to_string(), |value| format!("{value:.1}"));
                let change = old.zip(new).map_or(String::new(), |(old, new)| signed(new - old));
                let _ = writeln!(
                    out,
                    "<tr><td>{name} {k}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{change}</td></tr>",
                    shown(old),
                    shown(new)
                );
            }
        }
        out.push_str("</table></div>\n");
    }

    fn curves(&self, out: &mut String) {
        let epoch = self.history.steps_per_epoch();
        let over = |series: &Series| -> Vec<(f64, f64)> {
            series.points().iter().map(|(step, y)| (step / epoch, *y)).collect()
        };
        let mut cards = String::new();
        let mut card = |title: &str, lines: Vec<Line>, floor: Floor| {
            let svg = Chart { title, x: "epoch", lines, mark: None, floor }.svg();
            if !svg.is_empty() {
                let _ = writeln!(cards, "<div class=\"card\"><h3>{}</h3>{svg}</div>", html(title));
            }
        };
        let line = |name: &str, points, style| Line { name: name.to_string(), points, style };
        let noisy = |name: &str, series: &Series| {
            let points = over(series);
            let smooth = smoothed(&points);
            vec![line(name, points, LineStyle::Faint), line(name, smooth, LineStyle::Plain)]
        };
        let history = self.history;
        card("Loss", noisy("loss", &history.loss), Floor::Data);
        for (name, pick) in DIRECTIONS {
            let recall = |(k, at): (&str, fn(&Recall) -> f64)| {
                let at = |found: &super::Measured| (found.step as f64 / epoch, at(&pick(&found.report)));
                line(k, history.evaluations.iter().map(at).collect(), LineStyle::Dots)
            };
            card(&format!("Recall {name}, percent"), RECALLS.map(recall).into(), Floor::Zero);
        }
        card("Learning rate", vec![line("rate", over(&history.rate), LineStyle::Plain)], Floor::Zero);
        card("Norm of the gradients", noisy("norm", &history.gradient_norm), Floor::Zero);
        card("Scale of the cosines", vec![line("scale", over(&history.logit_scale), LineStyle::Plain)], Floor::Data);
        for (name, series) in &history.scalars {
            card(name, vec![line(name, over(series), LineStyle::Dots)], Floor::Data);
        }
        if !cards.is_empty() {
            let _ = writeln!(out, "<h2>Curves</h2>\n<div class=\"charts\">\n{cards}</div>");
        }
    }

    fn alphas(&self, out: &mut String) {
        let Some(curve) = self.alpha.as_ref().filter(|curve| !curve.points.is_empty()) else { return };
        let target = curve.points.iter().map(|point| (point.alpha, point.target)).collect();
        let canary: Vec<_> = curve.points.iter().filter_map(|point| Some((point.alpha, point.canary?))).collect();
        let mut lines = vec![Line { name: curve.target.clone(), points: target, style: LineStyle::Dots }];
        if !canary.is_empty() {
            lines.push(Line { name: curve.canary.clone(), points: canary, style: LineStyle::Dots });
        }
        let (x, title) = ("α: 0 before training, 1 after", "Between before and after");
        let svg = Chart { title, x, lines, mark: curve.chosen, floor: Floor::Data }.svg();
        let chosen =
            curve.chosen.map(|alpha| format!(" The model saved has α = {}.", number(alpha))).unwrap_or_default();
        let _ = writeln!(
            out,
            "<h2>{title}</h2>\n<p class=\"soft\">Weights interpolated between the model before and after training \
             (WiSE-FT), in percent.{chosen}</p>\n<div class=\"charts\"><div class=\"card\">{svg}</div></div>"
        );
    }

    fn how(&self, out: &mut String) {
        if !self.recipe.is_empty() {
            out.push_str("<h2>Recipe</h2>\n<div class=\"card\"><table>\n");
            for (name, value) in &self.recipe {
                let _ = writeln!(out, "<tr><th>{}</th><td class=\"words\">{}</td></tr>", html(name), html(value));
            }
            out.push_str("</table></div>\n");
        }
        if let Some(command) = &self.command {
            let _ = writeln!(out, "<h2>Command</h2>\n<div class=\"card\"><code>{}</code></div>", html(command));
        }
    }
}

/// What a report says of one direction.
type Direction = fn(&RetrievalReport) -> Recall;

/// Both directions by name.
pub(super) const DIRECTIONS: [(&str, Direction); 2] =
    [("text→image", |report| report.text_to_image), ("image→text", |report| report.image_to_text)];

/// One of a direction's recalls.
type AtRank = fn(&Recall) -> f64;

/// The recalls by name.
pub(super) const RECALLS: [(&str, AtRank); 3] =
    [("R@1", |recall| recall.r1), ("R@5", |recall| recall.r5), ("R@10", |recall| recall.r10)];

/// A change with its sign and colour.
fn signed(change: f64) -> String {
    let class = if change > 0.0 { "up" } else { "down" };
    if change.abs() < 0.05 {
        return "<span>±0.0</span>".to_string();
    }
    format!("<span class=\"{class}\">{}{:.1}</span>", if change > 0.0 { '+' } else { '−' }, change.abs())
}

fn retrievals(out: &mut String, title: &str, what: &str, list: &[Retrieved], gallery: &Gallery) {
    if list.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "<h2>{title}</h2>\n<p class=\"soft\">Captions {what}; searched among {} images, numbers are cosines.</p>\n<div \
         class=\"found\">",
        gallery.images
    );
    for found in list {
        let place =
            if found.rank == 1 { String::new() } else { format!(" <span class=\"soft\">place {}</span>", found.rank) };
        let five = if found.own.is_some() { " five" } else { "" };
        let _ = write!(
            out,
            "<div class=\"card\"><p><bdi>{}</bdi>{place}</p><div class=\"strip{five}\">",
            html(&found.caption)
        );
        found.found.iter().chain(&found.own).for_each(|shown| picture(out, shown));
        out.push_str("</div></div>\n");
    }
    out.push_str("</div>\n");
}

fn picture(out: &mut String, shown: &Picture) {
    let class = if shown.right { " class=\"right\"" } else { "" };
    let name = html(&shown.name);
    let image = if shown.jpeg.is_empty() {
        "<div class=\"gone\"></div>".to_string()
    } else {
        format!("<img alt=\"{name}\" title=\"{name}\" src=\"data:image/jpeg;base64,{}\">", base64(&shown.jpeg))
    };
    let _ = write!(out, "<figure{class}>{image}<figcaption>{:.2} {name}</figcaption></figure>", shown.score);
}
