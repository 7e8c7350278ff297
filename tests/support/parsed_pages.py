"""HTML pages as lists of their elements."""

from html.parser import HTMLParser

VOID = ("meta", "img")


class Page(HTMLParser):
    """Elements with their attributes and texts; refuses tags that do not match."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.found, self.comments = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        element = [tag, dict(attributes), ""]
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def handle_comment(self, data):
        self.comments.append(data)

    def all(self, tag, **attributes):
        return [e for e in self.found if e[0] == tag and attributes.items() <= e[1].items()]

    def texts(self, tag, **attributes):
        return [element[2] for element in self.all(tag, **attributes)]
