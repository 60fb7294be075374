//! `ports`: short and long syntax.

use std::net::IpAddr;

use super::cx::{At, Cx, quoted};
use crate::{
    bounds,
    manifest::{PortSpec, Protocol},
};

const ADVICE: &str = "write it like \"8080:80\", \"127.0.0.1:8080:80/udp\" or \"3000-3005:3000-3005\"";

/// Reads `ports`.
pub fn ports(cx: &mut Cx, at: &At) -> Vec<PortSpec> {
    let mut ports = Vec::new();
    for item in cx.items(at) {
        let read = if item.is_map() {
            long(cx, &item).map(|port| vec![port])
        } else {
            cx.text(&item).and_then(|text| match short(&text) {
                Ok(ports) => Some(ports),
                Err(fault) => {
                    cx.wrong(&item, format!("{} {fault}", quoted(&text)), ADVICE);
                    None
                }
            })
        };
        for port in read.unwrap_or_default() {
            if ports.contains(&port) {
                cx.wrong(&item, "this port is there twice", "remove one");
            } else if ports.len() == bounds::SERVICE_ENTRIES {
                cx.wrong(&item, "too many ports", "publish fewer ports");
                return ports;
            } else {
                ports.push(port);
            }
        }
    }
    ports.sort();
    ports
}

fn protocol(text: &str) -> Option<Protocol> {
    match text {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    }
}

fn long(cx: &mut Cx, at: &At) -> Option<PortSpec> {
    let fields = cx.fields(at, "services.*.ports[]");
    let Some(target) = fields.get("target") else {
        cx.wrong(at, "it has no target", "name the container's port");
        return None;
    };
    let container = cx.whole(target, 1, 65_535)?;
    let mut host = None;
    if let Some(published) = fields.get("published") {
        let text = cx.number(published)?;
        if !text.is_empty() {
            host = Some(cx.whole(published, 1, 65_535)?);
        }
    }
    let mut host_ip = None;
    if let Some(at) = fields.get("host_ip") {
        let text = cx.text(at)?;
        host_ip = text.parse().ok();
        if host_ip.is_none() {
            cx.wrong(at, format!("{} is no IP address", quoted(&text)), "correct it");
        }
    }
    let mut transport = Protocol::Tcp;
    if let Some(at) = fields.get("protocol") {
        let text = cx.text(at)?;
        match protocol(&text) {
            Some(known) => transport = known,
            None => cx.unsupported(at, format!("{} is not tcp or udp", quoted(&text)), ADVICE),
        }
    }
    Some(PortSpec {
        container: u16::try_from(container).ok()?,
        host: host.and_then(|host| u16::try_from(host).ok()),
        host_ip,
        protocol: transport,
    })
}

fn range(text: &str) -> Result<(u16, u16), &'static str> {
    let one = |text: &str| {
        Some(text)
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse::<u16>().ok())
            .filter(|port| *port > 0)
            .ok_or("has a port that is not 1 to 65535")
    };
    let (low, high) = match text.split_once('-') {
        Some((low, high)) => (one(low)?, one(high)?),
        None => (one(text)?, one(text)?),
    };
    if low > high {
        return Err("has a range that runs backwards");
    }
    Ok((low, high))
}

/// `[[address:][host]:]container[/protocol]`.
fn short(text: &str) -> Result<Vec<PortSpec>, &'static str> {
    let (rest, transport) = match text.rsplit_once('/') {
        Some((rest, name)) => (
            rest,
            protocol(name).ok_or("has a protocol that is not tcp or udp")?,
        ),
        None => (text, Protocol::Tcp),
    };
    let (rest, container) = match rest.rsplit_once(':') {
        Some((rest, container)) => (Some(rest), container),
        None => (None, rest),
    };
    let (address, host) = match rest {
        None => (None, None),
        Some(rest) => match rest.rsplit_once(':') {
            // `[::1]` alone, without a host port, does not end in a bracketed address and a colon.
            Some((address, host)) if !host.ends_with(']') => (Some(address), Some(host)),
            Some(_) => return Err("has an address without a host port"),
            None => (None, Some(rest)),
        },
    };
    let host_ip = match address {
        None => None,
        Some(address) => {
            let bare = match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                Some(bare) => bare,
                None if address.contains(':') => return Err("has an IPv6 address without brackets"),
                None => address,
            };
            Some(
                bare.parse::<IpAddr>()
                    .map_err(|_| "has an address that is no IP address")?,
            )
        }
    };
    let (first, last) = range(container)?;
    let first_host = match host {
        None | Some("") => None,
        Some(host) => {
            let (low, high) = range(host)?;
            if high - low != last - first {
                return Err("has ranges of different length");
            }
            Some(low)
        }
    };
    if usize::from(last - first) >= bounds::SERVICE_ENTRIES {
        return Err("has too long a range");
    }
    Ok((first..=last)
        .map(|container| PortSpec {
            container,
            host: first_host.map(|low| low + (container - first)),
            host_ip,
            protocol: transport,
        })
        .collect())
}

/// Whether two published ports cannot both be bound on one host.
pub fn clash(a: &PortSpec, b: &PortSpec) -> bool {
    let same_address = match (a.host_ip, b.host_ip) {
        (None, _) | (_, None) => true,
        (Some(a), Some(b)) => {
            a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()))
        }
    };
    a.host.is_some() && a.host == b.host && a.protocol == b.protocol && same_address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> PortSpec {
        short(text).unwrap().remove(0)
    }

    #[test]
    fn short_ports_follow_compose_spec() {
        assert_eq!((port("80").container, port("80").host), (80, None));
        assert_eq!(port("8080:80").host, Some(8080));
        let full = port("127.0.0.1:8080:80/udp");
        assert_eq!(full.host_ip, "127.0.0.1".parse().ok());
        assert_eq!(full.protocol, Protocol::Udp);
        assert_eq!(port("127.0.0.1::80").host, None);
        assert_eq!(port("[::1]:8080:80").host_ip, "::1".parse().ok());
        let many = short("3000-3002:4000-4002").unwrap();
        assert_eq!(many.len(), 3);
        assert_eq!((many[2].host, many[2].container), (Some(3002), 4002));
        for text in [
            "",
            ":",
            "0:80",
            "80:0",
            "a:80",
            "70000:80",
            "8080:80/sctp",
            "1-2:80",
            "5-3",
            "::1:80:80",
            "[::1]:80",
            "1:2:3:4",
            "+80",
            "localhost:80:80",
        ] {
            assert!(short(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_on_all_addresses_clashes_with_one_on_any() {
        assert!(clash(&port("80:80"), &port("127.0.0.1:80:81")));
        assert!(clash(&port("0.0.0.0:80:80"), &port("127.0.0.1:80:81")));
        assert!(!clash(&port("127.0.0.2:80:80"), &port("127.0.0.1:80:81")));
        assert!(!clash(&port("80:80"), &port("80:80/udp")));
        assert!(!clash(&port("80"), &port("80")));
    }
}
