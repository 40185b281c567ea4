//! The policy on the IP addresses that an image may be fetched from: by default only those that anybody on
//! the internet could reach. A name is checked by what it resolves to, in `fetch`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Bits in front of an IPv4 address that is written as one of IPv6 (`::ffff:10.1.2.3`).
const MAPPED_BITS: u8 = 96;

const fn v4(address: [u8; 4], prefix: u8) -> IpNet {
    let [a, b, c, d] = address;
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn v6(first: u16, second: u16, prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, 0), prefix))
}

/// True if the network has the address. IPv4 that is written as IPv6 counts as IPv4, on both sides.
fn contains(network: IpNet, address: IpAddr) -> bool {
    let mapped = match network {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_BITS => v6.addr().to_ipv4_mapped(),
        _ => None,
    };
    let prefix = network.prefix_len().saturating_sub(MAPPED_BITS);
    let network = mapped.and_then(|v4| Ipv4Net::new(v4, prefix).ok()).map_or(network, IpNet::V4);
    network.contains(&address.to_canonical())
}

/// Networks of IPv4 that are not the public internet, after IANA's registry of special-purpose addresses.
const NOT_PUBLIC_V4: [(IpNet, &str); 16] = [
    (v4([0, 0, 0, 0], 8), "this machine"),
    (v4([10, 0, 0, 0], 8), "a private network"),
    (v4([100, 64, 0, 0], 10), "a provider's inner network"),
    (v4([127, 0, 0, 0], 8), "this machine"),
    // The metadata services of most clouds are here.
    (v4([169, 254, 0, 0], 16), "a link-local address"),
    (v4([172, 16, 0, 0], 12), "a private network"),
    (v4([192, 0, 0, 0], 24), "a reserved network"),
    (v4([192, 0, 2, 0], 24), "a network for documentation"),
    (v4([192, 88, 99, 0], 24), "a reserved network"),
    (v4([192, 168, 0, 0], 16), "a private network"),
    (v4([198, 18, 0, 0], 15), "a network for benchmarks"),
    (v4([198, 51, 100, 0], 24), "a network for documentation"),
    (v4([203, 0, 113, 0], 24), "a network for documentation"),
    (v4([224, 0, 0, 0], 4), "a multicast group"),
    (v4([240, 0, 0, 0], 4), "a reserved network"),
    // Public by its number, but Azure's metadata service answers there.
    (v4([168, 63, 129, 16], 32), "a metadata service"),
];

/// Of IPv6, only this is the public internet …
const PUBLIC_V6: IpNet = v6(0x2000, 0, 3);
/// … without these. 6to4 and Teredo carry an IPv4 address of anybody's choice.
const NOT_PUBLIC_V6: [(IpNet, &str); 4] = [
    (v6(0x2001, 0, 23), "a reserved network"),
    (v6(0x2001, 0xdb8, 32), "a network for documentation"),
    (v6(0x2002, 0, 16), "an address that hides another"),
    (v6(0x3fff, 0, 20), "a network for documentation"),
];
/// Networks without IPv4 reach it under this prefix; the last four bytes are the IPv4 address.
const NAT64: IpNet = v6(0x64, 0xff9b, 96);

/// Names the kind of an address that may not be connected to; nothing for one that may.
pub(crate) fn refusal(address: IpAddr, allowed: &[IpNet]) -> Option<&'static str> {
    if allowed.iter().any(|network| contains(*network, address)) {
        return None;
    }
    let among = |networks: &[(IpNet, &'static str)], address: IpAddr| {
        networks.iter().find(|(network, _)| contains(*network, address)).map(|(_, what)| *what)
    };
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => among(&NOT_PUBLIC_V4, v4),
        IpAddr::V6(v6) if contains(NAT64, address) => {
            let [.., a, b, c, d] = v6.octets();
            refusal(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), allowed)
        }
        IpAddr::V6(v6) if v6.is_loopback() || v6.is_unspecified() => Some("this machine"),
        IpAddr::V6(v6) if v6.is_unique_local() => Some("a private network"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V6(v6) if v6.is_multicast() => Some("a multicast group"),
        v6 if !contains(PUBLIC_V6, v6) => Some("a reserved network"),
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
        let allowed: Vec<IpNet> =
            ["10.1.0.0/16", "::1/128", "127.0.0.1/32"].iter().map(|text| text.parse().unwrap()).collect();
        for text in ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "::1", "127.0.0.1"] {
            assert_eq!(refusal(text.parse().unwrap(), &allowed), None, "{text}");
        }
        for text in ["10.2.0.1", "127.0.0.2", "169.254.169.254", "::2", "::ffff:127.0.0.2"] {
            assert!(refusal(text.parse().unwrap(), &allowed).is_some(), "{text}");
        }
        let everything: Vec<IpNet> = ["0.0.0.0/0", "::/0"].iter().map(|text| text.parse().unwrap()).collect();
        for text in ["127.0.0.1", "fe80::1", "::ffff:10.0.0.1"] {
            assert_eq!(refusal(text.parse().unwrap(), &everything), None, "{text}");
        }
    }

    #[test]
    fn a_network_in_the_clothes_of_ipv6_is_one_of_ipv4() {
        let allowed: Vec<IpNet> =
            ["::ffff:10.1.0.0/112", "::ffff:7f00:1/128"].iter().map(|text| text.parse().unwrap()).collect();
        for text in ["10.1.2.3", "::ffff:10.1.2.3", "127.0.0.1", "::ffff:127.0.0.1"] {
            assert_eq!(refusal(text.parse().unwrap(), &allowed), None, "{text}");
        }
        for text in ["10.2.0.1", "::ffff:10.2.0.1", "127.0.0.2", "::1"] {
            assert!(refusal(text.parse().unwrap(), &allowed).is_some(), "{text}");
        }
    }
}
