//! Builds Ethernet frames, ordinary ones and odd ones.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6Header,
    SingleVlanHeader, TcpHeader, UdpHeader, VlanId,
};

/// A frame from the client to the server of a [`Net`](crate::Net), which the methods modify and turn into bytes.
#[derive(Clone, Debug)]
pub struct Frame {
    macs: ([u8; 6], [u8; 6]),
    vlan: Option<u16>,
    source: IpAddr,
    destination: IpAddr,
    ipv4_options: Vec<u8>,
    ipv6_extensions: Vec<u8>,
    fragment: Option<(u16, bool)>,
    transport: Transport,
}

/// The TCP flags of a frame, as in byte 13 of a TCP header (RFC 9293, section 3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flags(pub u8);

impl Flags {
    /// Only SYN.
    pub const SYN: Self = Self(0x02);
    /// Only ACK.
    pub const ACK: Self = Self(0x10);
    /// SYN and ACK.
    pub const SYN_ACK: Self = Self(0x12);
    /// Only FIN.
    pub const FIN: Self = Self(0x01);
    /// Only RST.
    pub const RST: Self = Self(0x04);
}

#[derive(Clone, Debug)]
enum Transport {
    Tcp { port: u16, flags: Flags },
    Udp { port: u16, payload: Vec<u8> },
}

impl Frame {
    /// A TCP segment without data from `source` to `port` of `destination`.
    pub fn tcp(source: impl Into<IpAddr>, destination: impl Into<IpAddr>, port: u16, flags: Flags) -> Self {
        Self::new(source.into(), destination.into(), Transport::Tcp { port, flags })
    }

    /// A UDP datagram with `payload` from `source` to `port` of `destination`.
    pub fn udp(source: impl Into<IpAddr>, destination: impl Into<IpAddr>, port: u16, payload: &[u8]) -> Self {
        Self::new(source.into(), destination.into(), Transport::Udp { port, payload: payload.to_vec() })
    }

    /// Replaces the hardware addresses of sender and receiver, by default the client's and the server's.
    #[must_use]
    pub fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        self.macs = (source, destination);
        self
    }

    /// Adds an IEEE 802.1Q tag; 0 is a priority tag.
    #[must_use]
    pub fn vlan(mut self, id: u16) -> Self {
        self.vlan = Some(id);
        self
    }

    /// Adds IPv4 options, up to 40 bytes and a multiple of 4.
    #[must_use]
    pub fn ipv4_options(mut self, options: &[u8]) -> Self {
        self.ipv4_options = options.to_vec();
        self
    }

    /// Adds an IPv6 extension header after those added before: hop-by-hop (0), routing (43) or destination options
    /// (60), of 8 bytes without meaning.
    #[must_use]
    pub fn ipv6_extension(mut self, number: u8) -> Self {
        self.ipv6_extensions.push(number);
        self
    }

    /// Makes it a fragment at `offset`, in units of 8 bytes; for IPv6 with a header after the other extensions. It
    /// still contains the bytes of the whole packet. Zero and `false` is an unfragmented IPv4 packet, or IPv6's
    /// atomic fragment.
    #[must_use]
    pub fn fragment(mut self, offset: u16, more_follow: bool) -> Self {
        self.fragment = Some((offset, more_follow));
        self
    }

    /// Returns the bytes, with correct lengths and checksums.
    ///
    /// # Errors
    ///
    /// When parts do not fit together: addresses of two families, options for the other family, or a number out of
    /// range.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let (ether_type, packet) = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                (EtherType::IPV4, self.ipv4(source.octets(), destination.octets())?)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                (EtherType::IPV6, self.ipv6(source.octets(), destination.octets())?)
            }
            (source, destination) => bail!("no packet can go from {source} to {destination}"),
        };

        let (source, destination) = self.macs;
        let outer_type = if self.vlan.is_some() { EtherType::VLAN_TAGGED_FRAME } else { ether_type };
        let mut bytes = Ethernet2Header { source, destination, ether_type: outer_type }.to_bytes().to_vec();
        if let Some(id) = self.vlan {
            let vlan_id = VlanId::try_new(id)?;
            bytes.extend(SingleVlanHeader { vlan_id, ether_type, ..SingleVlanHeader::default() }.to_bytes());
        }
        bytes.extend(packet);
        Ok(bytes)
    }

    fn new(source: IpAddr, destination: IpAddr, transport: Transport) -> Self {
        Self {
            macs: ([2, 0, 0, 0, 9, 2], [2, 0, 0, 0, 9, 1]),
            vlan: None,
            source,
            destination,
            ipv4_options: Vec::new(),
            ipv6_extensions: Vec::new(),
            fragment: None,
            transport,
        }
    }

    fn ipv4(&self, source: [u8; 4], destination: [u8; 4]) -> Result<Vec<u8>> {
        if !self.ipv6_extensions.is_empty() {
            bail!("an IPv4 packet has no extension headers");
        }
        let segment = match &self.transport {
            Transport::Tcp { port, flags } => {
                let mut header = tcp_header(*port, *flags);
                header.checksum = header.calc_checksum_ipv4_raw(source, destination, &[])?;
                header.to_bytes().to_vec()
            }
            Transport::Udp { port, payload } => {
                let mut header = udp_header(*port, payload)?;
                header.checksum = header.calc_checksum_ipv4_raw(source, destination, payload)?;
                [&header.to_bytes(), payload.as_slice()].concat()
            }
        };
        let options = Ipv4Options::try_from(self.ipv4_options.as_slice())?;
        let mut header =
            Ipv4Header::new(segment.len().try_into()?, 64, self.transport.ip_number(), source, destination)?;
        header.total_len += u16::from(options.len_u8());
        header.options = options;
        if let Some((offset, more_follow)) = self.fragment {
            header.dont_fragment = false;
            header.identification = 9;
            header.fragment_offset = IpFragOffset::try_new(offset)?;
            header.more_fragments = more_follow;
        }
        header.header_checksum = header.calc_header_checksum();
        Ok([header.to_bytes().as_slice(), &segment].concat())
    }

    fn ipv6(&self, source: [u8; 16], destination: [u8; 16]) -> Result<Vec<u8>> {
        if !self.ipv4_options.is_empty() {
            bail!("an IPv6 packet has no IPv4 options");
        }
        let segment = match &self.transport {
            Transport::Tcp { port, flags } => {
                let mut header = tcp_header(*port, *flags);
                header.checksum = header.calc_checksum_ipv6_raw(source, destination, &[])?;
                header.to_bytes().to_vec()
            }
            Transport::Udp { port, payload } => {
                let mut header = udp_header(*port, payload)?;
                header.checksum = header.calc_checksum_ipv6_raw(source, destination, payload)?;
                [&header.to_bytes(), payload.as_slice()].concat()
            }
        };

        // From the last header to the first, because each names the one after it. Bytes 1 to 7: no further length,
        // then a PadN option of 4 bytes (RFC 8200, section 4.2), or for the fragment header (section 4.5) offset,
        // flag and identification.
        let mut extensions = Vec::new();
        let mut next = self.transport.ip_number();
        if let Some((offset, more_follow)) = self.fragment {
            let [high, low] =
                (IpFragOffset::try_new(offset)?.value() << 3 | u16::from(more_follow)).to_be_bytes();
            extensions.push([next.0, 0, high, low, 0, 0, 0, 9]);
            next = IpNumber::IPV6_FRAGMENTATION_HEADER;
        }
        for &number in self.ipv6_extensions.iter().rev() {
            extensions.push([next.0, 0, 1, 4, 0, 0, 0, 0]);
            next = IpNumber(number);
        }
        extensions.reverse();
        let payload = [extensions.concat(), segment].concat();
        let header = Ipv6Header {
            payload_length: payload.len().try_into().context("too long for IPv6")?,
            next_header: next,
            hop_limit: 64,
            source,
            destination,
            ..Ipv6Header::default()
        };
        Ok([header.to_bytes().as_slice(), &payload].concat())
    }
}

impl Transport {
    fn ip_number(&self) -> IpNumber {
        match self {
            Self::Tcp { .. } => IpNumber::TCP,
            Self::Udp { .. } => IpNumber::UDP,
        }
    }
}

/// The source port of every frame; nothing depends on it.
const SOURCE_PORT: u16 = 40_000;

fn tcp_header(port: u16, flags: Flags) -> TcpHeader {
    let mut header = TcpHeader::new(SOURCE_PORT, port, 1, 64_240);
    let set = |bit: u8| flags.0 & bit != 0;
    header.fin = set(0x01);
    header.syn = set(0x02);
    header.rst = set(0x04);
    header.psh = set(0x08);
    header.ack = set(0x10);
    header.urg = set(0x20);
    header.ece = set(0x40);
    header.cwr = set(0x80);
    header
}

fn udp_header(port: u16, payload: &[u8]) -> Result<UdpHeader> {
    let length = u16::try_from(payload.len() + UdpHeader::LEN).context("too long for UDP")?;
    Ok(UdpHeader { source_port: SOURCE_PORT, destination_port: port, length, checksum: 0 })
}
