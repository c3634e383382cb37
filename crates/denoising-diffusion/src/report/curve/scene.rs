//! A picture as a list of shapes, in units of one SVG pixel, y downwards.

/// Red, green, blue.
pub(in crate::report) type Colour = [u8; 3];

/// Okabe and Ito's colours, which colour-blind readers can tell apart.
pub(in crate::report) const COLOURS: [Colour; 6] = [
    [0x00, 0x72, 0xb2],
    [0xd5, 0x5e, 0x00],
    [0x00, 0x9e, 0x73],
    [0xcc, 0x79, 0xa7],
    [0xe6, 0x9f, 0x00],
    [0x56, 0xb4, 0xe9],
];
pub(in crate::report) const INK: Colour = [0x33, 0x33, 0x33];
pub(in crate::report) const FRAME: Colour = [0x8c, 0x8c, 0x8c];
pub(in crate::report) const GRID: Colour = [0xe6, 0xe6, 0xe6];

#[derive(Clone, Debug)]
pub(in crate::report) struct Scene {
    pub width: u32,
    pub height: u32,
    /// Drawn in this order.
    pub shapes: Vec<Shape>,
}

#[derive(Clone, Debug)]
pub(in crate::report) enum Shape {
    /// A line through at least two points.
    Line { points: Vec<[f64; 2]>, colour: Colour, width: f64 },
    /// Discs of the same size.
    Dots { points: Vec<[f64; 2]>, colour: Colour, radius: f64, opacity: f64 },
    /// A filled rectangle: its top left and bottom right corners.
    Bar { from: [f64; 2], to: [f64; 2], colour: Colour, opacity: f64 },
    /// A line of text.
    Text(Label),
}

#[derive(Clone, Debug)]
pub(in crate::report) struct Label {
    pub text: String,
    /// A point on the baseline; `anchor` says which one.
    pub at: [f64; 2],
    /// Font size.
    pub size: f64,
    pub colour: Colour,
    pub anchor: Anchor,
    pub direction: Direction,
}

/// The point of the baseline to which a label's position refers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::report) enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    /// Fraction of the text's width before the anchor.
    pub fn part_before(self) -> f64 {
        match self {
            Self::Start => 0.0,
            Self::Middle => 0.5,
            Self::End => 1.0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::report) enum Direction {
    Right,
    Up,
}
