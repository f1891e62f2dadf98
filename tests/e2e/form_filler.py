"""FAKE: a browser that fills in the forms of a provider, as Ada, and presses the button. usage: form_filler.py URL"""

import http.cookiejar
import re
import sys
import urllib.parse
import urllib.request
from html import unescape

TEXTS = {"login": "ada", "password": "x", "sub": "ada"}


def main(url: str) -> None:
    jar = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
    with jar.open(url, timeout=60) as answer:
        place, page = answer.geturl(), answer.read().decode()
    for _ in range(8):
        form = re.search(r"(?s)<form([^>]*)>(.*?)</form>", page)
        if form is None:
            return
        action = re.search(r'action="([^"]*)"', form[1])
        fields = {}
        for tag in re.findall(r"<input[^>]*>", form[2]) + re.findall(r"<button[^>]*>", form[2])[:1]:
            said = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
            if "name" in said:
                fields[said["name"]] = TEXTS.get(said["name"], unescape(said.get("value", "")))
        target = urllib.parse.urljoin(place, unescape(action[1]) if action else place)
        with jar.open(target, urllib.parse.urlencode(fields).encode(), timeout=60) as answer:
            place, page = answer.geturl(), answer.read().decode()


if __name__ == "__main__":
    main(sys.argv[1])
