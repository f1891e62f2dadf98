"""FAKE: an identity provider with real RS256 keys. It speaks as Microsoft Entra ID does, or as any OpenID provider; who signs in there, and
what goes wrong, a test says."""

import base64
import hashlib
import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from mindgw import clock

TENANT = "8eaef023-2b34-4da1-9baa-8bc8c9d6a490"
OTHER = "ffffffff-2b34-4da1-9baa-8bc8c9d6a490"
CLIENT = "11111111-aaaa-4bbb-8ccc-222222222222"
OID = "0f7d3b1e-6f0d-4c55-9f0a-9d2f6d1f5c11"
#: Made once: they are slow.
KEYS = [rsa.generate_private_key(65537, 2048) for _ in range(2)]
STRANGER = rsa.generate_private_key(65537, 2048)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Provider:
    """At work until `close`."""

    def __init__(self, kind: str = "entra") -> None:
        self.kind = kind
        #: The key that signs, by its place in KEYS; and the kid that tokens name, None for none.
        self.signing = 0
        self.kid: str | None = "k0"
        #: Who signs in, beyond what every token says.
        self.person: dict[str, Any] = {
            "oid": OID,
            "tid": TENANT,
            "sub": "pairwise",
            "preferred_username": "Ada@Corp.example",
            "name": "Ada",
        }
        if kind != "entra":
            self.person = {"sub": "ada", "email": "ada@corp.example", "email_verified": True, "name": "Ada"}
        #: What is wrong: "", slow, garbage, huge, redirect, broken (500), foreign (another issuer in the metadata); and on which paths.
        self.trouble = ""
        self.troubled = ("/",)
        #: Whether the account of who signs in is disabled: whoever asks anew hears that.
        self.thrown_out = False
        #: What else is said to whoever asks anew, {} for nothing; and refresh tokens that were given up.
        self.refusal: dict[str, Any] = {}
        self.revoked: list[str] = []
        #: Fields of metadata in place of its own.
        self.metadata: dict[str, Any] = {}
        #: What changes of ID tokens, and of the redirect.
        self.id_token: dict[str, Any] = {}
        self.answer: dict[str, str] = {}
        #: The same of codes for devices, and of what a code is worth.
        self.device: dict[str, Any] = {}
        self.granted: dict[str, Any] = {}
        self.secret = ""
        #: Groups that Graph says somebody is in, None: it says nothing; and what it was asked, with which token.
        self.members: list[str] | None = []
        self.told: list[tuple[list[str], str]] = []
        #: Paths that were asked for.
        self.asked: list[str] = []
        self.released = threading.Event()
        self._codes: dict[str, dict[str, str]] = {}
        self._refresh: set[str] = set()
        #: device code -> whether somebody has typed it in; and how often it was asked about.
        self.devices: dict[str, bool] = {}
        self._lock = threading.Lock()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
                provider._serve(self, body)

            do_GET = do_POST = serve  # noqa: N815 - names of the standard library

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Whoever asked may have gone."""

        self.http = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=lambda: self.http.serve_forever(poll_interval=0.01))
        self.thread.start()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    @property
    def issuer(self) -> str:
        return f"{self.root}/{TENANT}/v2.0" if self.kind == "entra" else self.root

    @property
    def v1(self) -> str:
        return f"https://sts.windows.net/{TENANT}/"

    def settings(self, **more: str) -> str:
        """The section of a settings file, named `work`."""
        own = {"kind": "entra", "tenant": TENANT, "authority": self.root} if self.kind == "entra" else {"kind": "oidc", "issuer": self.root}
        said = {**own, "client_id": CLIENT, "audiences": CLIENT, "default_role": "user", **more}
        return "providers:\n  work:\n" + "".join(f"    {name}: {json.dumps(value)}\n" for name, value in said.items() if value)

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    # -- tokens ---------------------------------------------------------------------------------------------------

    def claims(self, **changes: Any) -> dict[str, Any]:
        """What a good token says; "gone" leaves a claim out."""
        now = int(clock.wall())
        said = {"iss": self.issuer, "aud": CLIENT, "iat": now, "nbf": now, "exp": now + 3600, "ver": "2.0", **self.person, **changes}
        if self.kind == "entra":
            said = {"azp": CLIENT, **said}
        return {name: value for name, value in said.items() if value != "gone"}

    def token(self, key: Any = None, header: dict[str, Any] | None = None, algorithm: str = "RS256", **changes: Any) -> str:
        """A token that is good but for what is changed."""
        head = {"kid": self.kid, **(header or {})}
        head = {name: value for name, value in head.items() if value is not None}
        return jwt.encode(self.claims(**changes), key or KEYS[self.signing], algorithm=algorithm, headers=head)

    def rotate(self) -> None:
        """From now on it signs with another key."""
        self.signing, self.kid = 1, "k1"

    def jwks(self) -> dict[str, Any]:
        public = json.loads(RSAAlgorithm.to_jwk(KEYS[self.signing].public_key()))
        named = {"kid": self.kid} if self.kid is not None else {}
        noise = [
            {"kty": "oct", "k": "c2VjcmV0", "kid": "k9"},
            {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "bad"},
            "garbage",
            {},
        ]
        return {"keys": [*noise, {**public, **named, "use": "sig"}]}

    # -- answers --------------------------------------------------------------------------------------------------

    def _serve(self, handler: BaseHTTPRequestHandler, body: str) -> None:
        parts = urlsplit(handler.path)
        path = parts.path.removeprefix(f"/{TENANT}") if self.kind == "entra" else parts.path
        path = path.removeprefix("/v2.0")
        self.asked.append(path)
        if path == "/v1.0/me/checkMemberGroups":
            self.told.append((json.loads(body)["groupIds"], (handler.headers.get("authorization") or "").removeprefix("Bearer ")))
            said = {"error": "x"} if self.members is None else {"value": self.members}
            self._send(handler, 403 if self.members is None else 200, json.dumps(said).encode())
            return
        form = dict(parse_qsl(body, keep_blank_values=True))
        if self.trouble and any(path.startswith(place) for place in self.troubled):
            self._misbehave(handler)
            return
        if path == "/authorize":
            self._authorize(handler, dict(parse_qsl(parts.query)))
            return
        with self._lock:
            status, said = self._say(path, form, handler.headers.get("authorization") or "")
        self._send(handler, status, json.dumps(said).encode())

    def _say(self, path: str, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        if path == "/.well-known/openid-configuration":
            return 200, self._described()
        if path == "/keys":
            return 200, self.jwks()
        if self.secret and form.get("client_secret") != self.secret and self.secret not in _basic(authorization):
            return 401, {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret.\r\nTrace ID: 1"}
        if path == "/device":
            return self._device(form)
        if path == "/revoke":
            self.revoked.append(form["token"])
            self._refresh.discard(form["token"])
            return 200, {}
        return self._token(form) if path == "/token" else (404, {"error": "not_found"})

    def _described(self) -> dict[str, Any]:
        scopes = ["openid", "profile", "email", "offline_access"]
        places = {"authorization": "authorize", "token": "token", "device_authorization": "device", "revocation": "revoke"}
        ends = {f"{name}_endpoint": f"{self.root}/{place}" for name, place in places.items()}
        return {"issuer": self.issuer, "jwks_uri": f"{self.root}/keys", "scopes_supported": scopes, **ends, **self.metadata}

    def _authorize(self, handler: BaseHTTPRequestHandler, asked: dict[str, str]) -> None:
        code = secrets.token_urlsafe(8)
        self._codes[code] = asked
        said = {"code": code, "state": asked["state"], **self.answer}
        place = f"{asked['redirect_uri']}?{urlencode({name: value for name, value in said.items() if value})}"
        self._send(handler, 302, b"", {"location": place})

    def _device(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        code = secrets.token_urlsafe(8)
        self.devices[code] = False
        place = f"{self.root}/typed"
        said = {"device_code": code, "user_code": "ABCD-1234", "verification_uri": place, "expires_in": 900, "interval": 1, **self.device}
        return 200, {name: value for name, value in said.items() if value is not None}

    def _token(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        kind, nonce = form.get("grant_type"), ""
        if kind == "authorization_code":
            asked = self._codes.pop(form.get("code", ""), None)
            proof = b64(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
            if asked is None or asked["code_challenge"] != proof or asked["redirect_uri"] != form.get("redirect_uri"):
                return 400, {"error": "invalid_grant", "error_description": "AADSTS70008: The code is not good.\r\nTrace ID: 1"}
            nonce = asked["nonce"]
        elif kind == "refresh_token":
            if self.thrown_out:
                return 400, {"error": "invalid_grant", "error_description": "AADSTS50057: The user account is disabled.\r\nTrace ID: 1"}
            if self.refusal:
                return 400, self.refusal
            if form.get("refresh_token") not in self._refresh:
                return 400, {"error": "invalid_grant", "error_description": "AADSTS70008: The refresh token has expired."}
            self._refresh.discard(form["refresh_token"])
        elif kind == "urn:ietf:params:oauth:grant-type:device_code":
            done = self.devices.get(form.get("device_code", ""))
            if done is not True:
                return 400, {"error": "authorization_pending" if done is False else "expired_token"}
            del self.devices[form["device_code"]]
        else:
            return 400, {"error": "unsupported_grant_type"}
        return 200, self._granted(nonce)

    def _granted(self, nonce: str) -> dict[str, Any]:
        held = secrets.token_urlsafe(8)
        self._refresh.add(held)
        own = {"nonce": nonce, "azp": "gone"} if nonce else {"azp": "gone"}
        token = self.token(**{**own, **self.id_token})
        return {"access_token": "opaque", "token_type": "Bearer", "refresh_token": held, "id_token": token, **self.granted}

    def _misbehave(self, handler: BaseHTTPRequestHandler) -> None:
        if self.trouble == "slow":
            self.released.wait(60)
        elif self.trouble == "redirect":
            self._send(handler, 302, b"", {"location": f"{self.root}/elsewhere"})
        elif self.trouble == "garbage":
            self._send(handler, 200, b"\xff<html>{not json")
        elif self.trouble == "huge":
            self._send(handler, 200, b'{"x":"' + b"y" * 10_000_000 + b'"}')
        else:
            self._send(handler, 500, b"{}")

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        handler.send_response(status)
        for name, value in {"content-length": str(len(body)), "content-type": "application/json", **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


def _basic(authorization: str) -> str:
    try:
        return base64.b64decode(authorization.removeprefix("Basic ")).decode()
    except ValueError:
        return ""
