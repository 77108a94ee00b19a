"""Sockets: TLS links, sealed datagrams, mDNS, and the real clock."""
