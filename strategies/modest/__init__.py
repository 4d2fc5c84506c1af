"""MoDeST: decentralized sampling."""
