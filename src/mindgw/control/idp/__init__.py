"""Identity providers: asked over HTTP, believed by their keys. Nothing here knows of users; see docs/design/sign-on.md."""
