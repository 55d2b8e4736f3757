"""What the machine and its environment say of the network: whom to trust, and which proxies to ask."""

from __future__ import annotations

import os

# OpenSSL's compiled-in place differs between distributions; these are theirs. First found wins.
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS, FreeBSD
)


def trust_store() -> tuple[str, str]:
    """`("/etc/ssl/certs/ca-certificates.crt", "")`: a file of certificates and a directory of them, either may be "".

    SSL_CERT_FILE comes first, or else SSL_CERT_DIR, then the system's store, then certifi where it is installed. Both empty:
    libcurl's own idea. Not both: a file is parsed once, but together with a directory for each connection anew (17 ms of CPU
    instead of 0.7).
    """
    file, directory = os.environ.get("SSL_CERT_FILE", ""), os.environ.get("SSL_CERT_DIR", "")
    if file or directory:
        return file, "" if file else directory
    for bundle in _BUNDLES:
        if os.path.exists(bundle):
            return bundle, ""
    try:
        import certifi
    except ImportError:
        return "", ""
    return certifi.where(), ""


def proxies() -> tuple[str, str, str]:
    """`("http://proxy:3128", "http://proxy:3128", "localhost,.example.com")`: for http, for https, and who needs none.

    From http_proxy, https_proxy, all_proxy and no_proxy, in small letters before capitals, as curl reads them. Not from HTTP_PROXY
    in a program that a web server has started: there whoever sends a request with a header "Proxy" sets it.
    """

    def found(name: str) -> str:
        upper = "" if name == "http_proxy" and "REQUEST_METHOD" in os.environ else os.environ.get(name.upper(), "")
        return os.environ.get(name) or upper

    fallback = found("all_proxy")
    return found("http_proxy") or fallback, found("https_proxy") or fallback, found("no_proxy")
