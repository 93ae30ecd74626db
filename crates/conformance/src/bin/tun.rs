//! Creates the interface `tun0` on its host, and injects every line of hexadecimal digits on stdin there as an IP
//! packet.

use std::io::BufRead;
use std::process::Command;

use anyhow::{Context, Result, ensure};

fn main() -> Result<()> {
    let tun = tappers::Tun::new_named(tappers::Interface::new("tun0")?)?;
    for words in
        ["addr add 192.0.2.1/24 dev tun0", "addr add 2001:db8::1/64 dev tun0 nodad", "link set tun0 up"]
    {
        ensure!(Command::new("ip").args(words.split(' ')).status()?.success(), "ip {words}");
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let digits: Vec<u32> = line.chars().map_while(|char| char.to_digit(16)).collect();
        let packet: Vec<u8> = digits
            .as_chunks::<2>()
            .0
            .iter()
            .map(|[high, low]| u8::try_from(high << 4 | low))
            .collect::<Result<_, _>>()?;
        tun.send(&packet).context("cannot send")?;
    }
    Ok(())
}
