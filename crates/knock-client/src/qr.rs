//! QR codes: for the terminal, as PNG and as SVG.

use qrcode::render::{svg, unicode::Dense1x2};
use qrcode::{Color, EcLevel, QrCode};

/// Light modules around the code, as its standard (ISO/IEC 18004) requires.
const MARGIN: usize = 4;
/// The side of a module in a picture, in pixels.
const SCALE: usize = 8;

/// A QR code.
pub(crate) struct Qr(QrCode);

/// The code would be larger than the largest one.
#[derive(Debug, thiserror::Error)]
#[error("the link is too long for a QR code; export it as uri")]
pub(crate) struct TooLong;

impl Qr {
    /// Makes the code of a text.
    ///
    /// # Errors
    ///
    /// [`TooLong`].
    pub(crate) fn of(text: &str) -> Result<Self, TooLong> {
        QrCode::with_error_correction_level(text, EcLevel::L).map(Self).map_err(|_| TooLong)
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
    pub(crate) fn png(&self) -> Vec<u8> {
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
        png(side, &bits)
    }
}

/// Writes a picture with one bit for each pixel, its rows padded to bytes, as PNG (RFC 2083).
///
/// It is not compressed: a QR code is small, and a compressor would be larger than all else here.
fn png(side: usize, bits: &[u8]) -> Vec<u8> {
    let side_bytes = u32::try_from(side).unwrap_or_default().to_be_bytes();
    // Depth 1, greyscale, and the only methods that there are.
    let header = [&side_bytes[..], &side_bytes, &[1, 0, 0, 0, 0]].concat();
    // Each row begins with its filter, which is none.
    let rows: Vec<u8> = bits.chunks(side.div_ceil(8)).flat_map(|row| [&[0], row].concat()).collect();
    let signature = [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a].to_vec();
    [signature, chunk(*b"IHDR", &header), chunk(*b"IDAT", &stored(&rows)), chunk(*b"IEND", &[])].concat()
}

fn chunk(name: [u8; 4], data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap_or_default().to_be_bytes();
    let named = [&name[..], data].concat();
    [&length[..], &named, &crc(&named).to_be_bytes()].concat()
}

/// Puts data into a zlib stream (RFC 1950) of blocks that are not compressed (RFC 1951, section 3.2.4).
fn stored(data: &[u8]) -> Vec<u8> {
    let mut stream = vec![0x78, 0x01];
    let blocks = data.chunks(usize::from(u16::MAX));
    let last = blocks.len().saturating_sub(1);
    for (number, block) in blocks.enumerate() {
        let length = u16::try_from(block.len()).unwrap_or_default();
        stream.push(u8::from(number == last));
        stream.extend(length.to_le_bytes());
        stream.extend((!length).to_le_bytes());
        stream.extend(block);
    }
    let (a, b) = data.iter().fold((1, 0), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65521;
        (a, (b + a) % 65521)
    });
    stream.extend((b << 16 | a).to_be_bytes());
    stream
}

/// The CRC of RFC 2083, section 3.4.
fn crc(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_picture_is_one_that_others_read() {
        // A version 40 code needs more than one block.
        let side = (177 + 2 * MARGIN) * SCALE;
        let bits: Vec<u8> = (0..side.div_ceil(8) * side).map(|byte| (byte % 251).to_le_bytes()[0]).collect();
        let picture = png(side, &bits);
        let mut reader = png::Decoder::new(std::io::Cursor::new(picture)).read_info().unwrap();
        let mut read = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut read).unwrap();
        assert!(read == bits);
    }

    #[test]
    fn what_does_not_fit_is_too_long() {
        assert!(Qr::of(&"x".repeat(2953)).is_ok());
        assert!(Qr::of(&"x".repeat(2954)).is_err());
    }
}
