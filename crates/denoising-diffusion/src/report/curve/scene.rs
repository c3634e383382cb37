//! A picture as a list of shapes, in units of one SVG pixel, y downwards.

/// Red, green, blue.
pub(super) type Colour = [u8; 3];

#[derive(Clone, Debug)]
pub(super) struct Scene {
    pub width: u32,
    pub height: u32,
    /// Drawn in this order.
    pub shapes: Vec<Shape>,
}

#[derive(Clone, Debug)]
pub(super) enum Shape {
    /// A line through at least two points.
    Line { points: Vec<[f64; 2]>, colour: Colour, width: f64 },
    /// Discs of the same size.
    Dots { points: Vec<[f64; 2]>, colour: Colour, radius: f64, opacity: f64 },
    /// A line of text.
    Text(Label),
}

#[derive(Clone, Debug)]
pub(super) struct Label {
    pub text: String,
    /// A point on the baseline; which one is said by `anchor`.
    pub at: [f64; 2],
    /// Font size.
    pub size: f64,
    pub colour: Colour,
    pub anchor: Anchor,
    pub direction: Direction,
}

/// Which point of the baseline a label's position means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    /// Part of the text's width that lies before the anchor.
    pub fn part_before(self) -> f64 {
        match self {
            Self::Start => 0.0,
            Self::Middle => 0.5,
            Self::End => 1.0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Right,
    Up,
}
