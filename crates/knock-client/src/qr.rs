//! QR codes: for the terminal, as PNG and as SVG.

use qrcode::render::{svg, unicode::Dense1x2};
use qrcode::{Color, EcLevel, QrCode};

/// Light modules around the code, as its standard (ISO/IEC 18004) requires.
const MARGIN: usize = 4;
/// The side of a module in a picture, in pixels.
const SCALE: usize = 8;

/// A QR code.
pub(crate) struct Qr(QrCode);

/// Why there is no QR code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QrError {
    /// It would be larger than the largest one.
    #[error("the link is too long for a QR code; export it as uri")]
    TooLong,
    /// The picture cannot be made.
    #[error("cannot make the picture: {0}")]
    Png(#[from] png::EncodingError),
}

impl Qr {
    /// Makes the code of a text.
    ///
    /// # Errors
    ///
    /// [`QrError::TooLong`].
    pub(crate) fn of(text: &str) -> Result<Self, QrError> {
        QrCode::with_error_correction_level(text, EcLevel::L).map(Self).map_err(|_| QrError::TooLong)
    }

    /// Draws it with half a character for each module, black on white whatever the terminal's colours are.
    pub(crate) fn text(&self) -> String {
        let drawn = self.0.render().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build();
        let line = |line: &str| format!("\x1b[97;40m{line}\x1b[0m\n");
        drawn.lines().map(line).collect()
    }

    /// Draws it as SVG.
    pub(crate) fn svg(&self) -> String {
        let scale = u32::try_from(SCALE).unwrap_or(1);
        self.0.render::<svg::Color<'_>>().module_dimensions(scale, scale).build()
    }

    /// Draws it as PNG with one bit for each pixel.
    ///
    /// # Errors
    ///
    /// [`QrError::Png`].
    pub(crate) fn png(&self) -> Result<Vec<u8>, QrError> {
        let modules = self.0.width();
        let colors = self.0.to_colors();
        let side = (modules + 2 * MARGIN) * SCALE;
        let is_light = |x: usize, y: usize| {
            let module =
                |pixel: usize| (pixel / SCALE).checked_sub(MARGIN).filter(|&module| module < modules);
            let (Some(x), Some(y)) = (module(x), module(y)) else { return true };
            colors.get(y * modules + x) != Some(&Color::Dark)
        };
        let byte = |start: usize, y: usize| {
            (start..start + 8).fold(0_u8, |byte, x| byte << 1 | u8::from(x >= side || is_light(x, y)))
        };
        let rows = (0..side).flat_map(|y| (0..side).step_by(8).map(move |start| (start, y)));
        let bits: Vec<u8> = rows.map(|(start, y)| byte(start, y)).collect();
        let side = u32::try_from(side).unwrap_or_default();
        let mut picture = Vec::new();
        let mut encoder = png::Encoder::new(&mut picture, side, side);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::One);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&bits)?;
        writer.finish()?;
        Ok(picture)
    }
}
