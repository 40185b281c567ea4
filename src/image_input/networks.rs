//! Which addresses of the internet protocol an image may be fetched from: by default only those that anybody on the
//! internet could reach. A name is checked by what it resolves to, in `fetch`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::error::Error;

/// A range of addresses, such as `10.1.0.0/16`, `fd00::/8` or `127.0.0.1`. `::ffff:10.1.0.0/112` is the first of them.
///
/// ```
/// use candle_actors::Network;
/// let network: Network = "10.1.0.0/16".parse()?;
/// assert!(network.contains("10.1.2.3".parse().unwrap()));
/// assert!(!network.contains("10.2.2.3".parse().unwrap()));
/// assert!("10.1.0.0/33".parse::<Network>().is_err());
/// # Ok::<(), candle_actors::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    const fn v4(address: [u8; 4], prefix: u8) -> Self {
        let [a, b, c, d] = address;
        Self { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
    }

    const fn v6(first: u16, second: u16, prefix: u8) -> Self {
        Self { address: IpAddr::V6(Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, 0)), prefix }
    }

    /// Whether the address is one of them. An IPv4 address in IPv6's clothes (`::ffff:10.1.2.3`) counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same = |left: u128, right: u128, bits: u8| {
            let ignored = u32::from(bits - self.prefix);
            left.checked_shr(ignored) == right.checked_shr(ignored)
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => same(own.to_bits().into(), other.to_bits().into(), 32),
            (IpAddr::V6(own), IpAddr::V6(other)) => same(own.to_bits(), other.to_bits(), 128),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidSetting {
            setting: "allowed_networks".into(),
            reason: format!("{text:?} is no network; such are 10.1.0.0/16, fd00::/8 and 127.0.0.1"),
        };
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(bits), |prefix| prefix.parse().map_err(|_| invalid()))?;
        match address {
            _ if prefix > bits => Err(invalid()),
            // Addresses in these clothes count as IPv4, so that such a network is one of IPv4 too.
            IpAddr::V6(v6) if prefix >= MAPPED_BITS && v6.to_ipv4_mapped().is_some() => {
                Ok(Self { address: address.to_canonical(), prefix: prefix - MAPPED_BITS })
            }
            address => Ok(Self { address, prefix }),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

/// Bits in front of an IPv4 address in IPv6's clothes.
const MAPPED_BITS: u8 = 96;

/// Networks of IPv4 that are not the public internet, after IANA's registry of special-purpose addresses.
const NOT_PUBLIC_V4: [(Network, &str); 16] = [
    (Network::v4([0, 0, 0, 0], 8), "this machine"),
    (Network::v4([10, 0, 0, 0], 8), "a private network"),
    (Network::v4([100, 64, 0, 0], 10), "a provider's inner network"),
    (Network::v4([127, 0, 0, 0], 8), "this machine"),
    // The metadata services of most clouds are here.
    (Network::v4([169, 254, 0, 0], 16), "a link-local address"),
    (Network::v4([172, 16, 0, 0], 12), "a private network"),
    (Network::v4([192, 0, 0, 0], 24), "a reserved network"),
    (Network::v4([192, 0, 2, 0], 24), "a network for documentation"),
    (Network::v4([192, 88, 99, 0], 24), "a reserved network"),
    (Network::v4([192, 168, 0, 0], 16), "a private network"),
    (Network::v4([198, 18, 0, 0], 15), "a network for benchmarks"),
    (Network::v4([198, 51, 100, 0], 24), "a network for documentation"),
    (Network::v4([203, 0, 113, 0], 24), "a network for documentation"),
    (Network::v4([224, 0, 0, 0], 4), "a multicast group"),
    (Network::v4([240, 0, 0, 0], 4), "a reserved network"),
    // Public by its number, but Azure's metadata service answers there.
    (Network::v4([168, 63, 129, 16], 32), "a metadata service"),
];

/// Of IPv6, only this is the public internet …
const PUBLIC_V6: Network = Network::v6(0x2000, 0, 3);
/// … without these. 6to4 and Teredo carry an IPv4 address of anybody's choice.
const NOT_PUBLIC_V6: [(Network, &str); 4] = [
    (Network::v6(0x2001, 0, 23), "a reserved network"),
    (Network::v6(0x2001, 0xdb8, 32), "a network for documentation"),
    (Network::v6(0x2002, 0, 16), "an address that hides another"),
    (Network::v6(0x3fff, 0, 20), "a network for documentation"),
];
/// Networks without IPv4 reach it under this prefix; the last four bytes are the IPv4 address.
const NAT64: Network = Network::v6(0x64, 0xff9b, 96);

/// Nothing, if the address may be connected to; else what it is.
pub(crate) fn refusal(address: IpAddr, allowed: &[Network]) -> Option<&'static str> {
    if allowed.iter().any(|network| network.contains(address)) {
        return None;
    }
    let among = |networks: &[(Network, &'static str)], address: IpAddr| {
        networks.iter().find(|(network, _)| network.contains(address)).map(|(_, what)| *what)
    };
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => among(&NOT_PUBLIC_V4, v4),
        IpAddr::V6(v6) if NAT64.contains(address) => {
            let [.., a, b, c, d] = v6.octets();
            refusal(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), allowed)
        }
        IpAddr::V6(v6) if v6.is_loopback() || v6.is_unspecified() => Some("this machine"),
        IpAddr::V6(v6) if v6.is_unique_local() => Some("a private network"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V6(v6) if v6.is_multicast() => Some("a multicast group"),
        v6 if !PUBLIC_V6.contains(v6) => Some("a reserved network"),
        v6 => among(&NOT_PUBLIC_V6, v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_internet_is_reached() {
        let refused = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "192.88.99.1",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "100::1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001::1",
            "2001:0:7f00:1::",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:a00:1::",
            "3fff::1",
            "4000::1",
            "5f00::1",
        ];
        for text in refused {
            assert!(refusal(text.parse().unwrap(), &[]).is_some(), "{text}");
        }
        let allowed = [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "192.167.0.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "168.63.129.17",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "2a00:1450::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ];
        for text in allowed {
            assert_eq!(refusal(text.parse().unwrap(), &[]), None, "{text}");
        }
    }

    #[test]
    fn what_the_application_allows_is_reached_and_nothing_beside_it() {
        let allowed: Vec<Network> =
            ["10.1.0.0/16", "::1", "127.0.0.1"].iter().map(|text| text.parse().unwrap()).collect();
        for text in ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "::1", "127.0.0.1"] {
            assert_eq!(refusal(text.parse().unwrap(), &allowed), None, "{text}");
        }
        for text in ["10.2.0.1", "127.0.0.2", "169.254.169.254", "::2", "::ffff:127.0.0.2"] {
            assert!(refusal(text.parse().unwrap(), &allowed).is_some(), "{text}");
        }
        let everything: Vec<Network> =
            ["0.0.0.0/0", "::/0"].iter().map(|text| text.parse().unwrap()).collect();
        for text in ["127.0.0.1", "fe80::1", "::ffff:10.0.0.1"] {
            assert_eq!(refusal(text.parse().unwrap(), &everything), None, "{text}");
        }
    }

    #[test]
    fn a_network_in_the_clothes_of_ipv6_is_one_of_ipv4() {
        let allowed: Vec<Network> =
            ["::ffff:10.1.0.0/112", "::ffff:7f00:1"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(allowed[0].to_string(), "10.1.0.0/16");
        for text in ["10.1.2.3", "::ffff:10.1.2.3", "127.0.0.1", "::ffff:127.0.0.1"] {
            assert_eq!(refusal(text.parse().unwrap(), &allowed), None, "{text}");
        }
        for text in ["10.2.0.1", "::ffff:10.2.0.1", "127.0.0.2", "::1"] {
            assert!(refusal(text.parse().unwrap(), &allowed).is_some(), "{text}");
        }
    }

    #[test]
    fn a_network_is_read_and_written() {
        for text in ["10.0.0.0/8", "::/0", "fd00::/8", "0.0.0.0/0"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        for text in
            ["", "10", "10.0.0.0/33", "::/129", "localhost", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/8/8"]
        {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
