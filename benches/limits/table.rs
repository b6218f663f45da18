//! Figures beside their targets.

use std::fmt;

pub struct Table {
    title: String,
    rows: Vec<Row>,
}

struct Row {
    what: String,
    figure: String,
    target: String,
    reached: &'static str,
    remark: String,
}

#[derive(Clone, Copy)]
pub enum Target {
    Below(f64),
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    fn is_reached(self, figure: f64) -> bool {
        match self {
            Self::Below(bound) => figure < bound,
            Self::AtMost(bound) => figure <= bound,
            Self::AtLeast(bound) => figure >= bound,
        }
    }
}

impl Table {
    pub fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            rows: Vec::new(),
        }
    }

    /// A figure that is to keep to a target.
    pub fn limit(
        &mut self,
        what: impl Into<String>,
        (figure, unit): (f64, &str),
        target: Target,
        remark: impl Into<String>,
    ) {
        let (words, bound) = match target {
            Target::Below(bound) => ("below", bound),
            Target::AtMost(bound) => ("at most", bound),
            Target::AtLeast(bound) => ("at least", bound),
        };
        self.rows.push(Row {
            what: what.into(),
            figure: quantity(figure, unit),
            target: format!("{words} {}", quantity(bound, unit)),
            reached: if target.is_reached(figure) { "yes" } else { "**no**" },
            remark: remark.into(),
        });
    }

    /// A figure that others are to be seen beside.
    pub fn note(&mut self, what: impl Into<String>, (figure, unit): (f64, &str), remark: impl Into<String>) {
        self.rows.push(Row {
            what: what.into(),
            figure: quantity(figure, unit),
            target: "–".into(),
            reached: "–",
            remark: remark.into(),
        });
    }
}

fn quantity(number: f64, unit: &str) -> String {
    let digits = match number.abs() {
        // 99.96 % is not all.
        _ if unit == "%" => 2,
        number if number >= 200.0 || number == 0.0 => 0,
        number if number >= 20.0 => 1,
        number if number >= 0.2 => 2,
        _ => 3,
    };
    format!("{number:.digits$} {unit}").trim_end().to_owned()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n", self.title)?;
        writeln!(
            f,
            "| what | figure | target | reached | beside it |\n|---|---|---|---|---|"
        )?;
        for row in &self.rows {
            let Row {
                what,
                figure,
                target,
                reached,
                remark,
            } = row;
            writeln!(f, "| {what} | {figure} | {target} | {reached} | {remark} |")?;
        }
        Ok(())
    }
}
