//! Which addresses a document's link may lead to: public ones, where the provider can fetch it too, and
//! networks that the operator names. What a publisher writes must not have the worker ask a neighbour.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// What IANA's registry of special-purpose IPv4 addresses does not call globally reachable, multicast and
/// 6to4's relays.
const SPECIAL_V4: [Ipv4Net; 15] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
];

/// All of IPv6 that IANA has given out as global unicast. Loopback, private, link-local and multicast
/// addresses lie outside, and so do IPv4's as IPv6 maps or translates them (`::ffff:0:0/96`,
/// `64:ff9b::/96`, `64:ff9b:1::/48`).
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 3);

/// What is special within that: protocols' own (Teredo among them), documentation, 6to4.
const SPECIAL_V6: [Ipv6Net; 4] =
    [v6(0x2001, 0, 23), v6(0x2001, 0xdb8, 32), v6(0x2002, 0, 16), v6(0x3fff, 0, 20)];

/// Whether a link may lead to `address`: it is public, or in one of the networks that are `allowed`.
pub fn may_connect(address: IpAddr, allowed: &[IpNet]) -> bool {
    let is_public = match address {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => {
            GLOBAL_V6.contains(&address) && !SPECIAL_V6.iter().any(|net| net.contains(&address))
        }
    };
    is_public || allowed.iter().any(|net| net.contains(&address))
}

/// Whether a link, or what it redirects to, may be asked for: by https, without a user, and where an address
/// stands for the host's name, at one that [`may_connect`]. What a name leads to is judged when it is
/// resolved.
pub fn may_ask(url: &Url, allowed: &[IpNet]) -> bool {
    let is_plain = url.scheme() == "https" && url.username().is_empty() && url.password().is_none();
    is_plain
        && match url.host() {
            Some(Host::Domain(_)) => true,
            Some(Host::Ipv4(address)) => may_connect(address.into(), allowed),
            Some(Host::Ipv6(address)) => may_connect(address.into(), allowed),
            None => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str, is_public: bool) {
        assert_eq!(may_connect(address.parse().expect("an address"), &[]), is_public, "{address}");
    }

    #[test]
    fn public_addresses_and_no_others_may_be_connected_to() {
        for public in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            check(public, true);
        }
        for inside in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd12:3456::1",
            "ff02::1",
            "100::1",
            "5f00::1",
            "2001:db8::1",
            "3fff::1",
        ] {
            check(inside, false);
        }
    }

    /// Each leads to 127.0.0.1, 10.0.0.1 or a public IPv4 address by a way that no name needs.
    #[test]
    fn no_ipv4_address_is_reached_as_an_ipv6_one() {
        for hidden in [
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:1.1.1.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b::101:101",
            "64:ff9b:1::a00:1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        ] {
            check(hidden, false);
        }
    }

    #[test]
    fn networks_that_are_allowed_are_those_and_no_others() {
        let allowed: Vec<IpNet> =
            ["10.1.0.0/16", "fd12::/16"].iter().map(|net| net.parse().expect("a network")).collect();
        for (address, is_allowed) in [
            ("10.1.2.3", true),
            ("10.2.0.1", false),
            ("fd12::5", true),
            ("fd13::5", false),
            ("1.1.1.1", true),
            ("::ffff:10.1.2.3", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(may_connect(address.parse().expect("an address"), &allowed), is_allowed, "{address}");
        }
    }

    #[test]
    fn hosts_are_judged_by_the_address_that_they_stand_for() {
        for (link, may_be_asked) in [
            ("https://files.example.com/a.jpg", true),
            ("https://1.1.1.1/a.jpg", true),
            ("https://[2606:4700::1111]/a.jpg", true),
            ("http://files.example.com/a.jpg", false),
            ("ftp://files.example.com/a.jpg", false),
            ("file:///etc/passwd", false),
            ("https://user@files.example.com/a.jpg", false),
            ("https://:word@files.example.com/a.jpg", false),
            ("https://127.0.0.1/a.jpg", false),
            ("https://2130706433/a.jpg", false),
            ("https://0x7f000001/a.jpg", false),
            ("https://0177.0.0.1/a.jpg", false),
            ("https://0x7f.1/a.jpg", false),
            ("https://127.1/a.jpg", false),
            ("https://127.0.0.1./a.jpg", false),
            ("https://%31%32%37.0.0.1/a.jpg", false),
            ("https://\u{ff11}27.0.0.1/a.jpg", false),
            ("https://169.254.169.254/latest/meta-data", false),
            ("https://[::1]/a.jpg", false),
            ("https://[::ffff:127.0.0.1]/a.jpg", false),
            ("https://[::ffff:7f00:1]/a.jpg", false),
            ("https://[64:ff9b::127.0.0.1]/a.jpg", false),
            ("https://[2002:7f00:1::]/a.jpg", false),
        ] {
            assert_eq!(may_ask(&Url::parse(link).expect("a URL"), &[]), may_be_asked, "{link}");
        }
    }
}
