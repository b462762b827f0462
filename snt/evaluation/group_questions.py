"""Questions about groups of people: which take discrimination or a cruelty for right.

Patterns meet lowered prompts with straight apostrophes and without words of politeness.
"""

from __future__ import annotations

import re

_GROUP = (
    r"(?:(?:black|white|brown)(?:s| (?:people|persons?|men|women|folks?|kids|child\w*|students?"
    r"|americans?|workers|famil\w+|voters?|girls?|boys?|communit\w+|neighbou?rs?|applicants?))"
    r"|jew\w*|muslim\w*|christian\w*|hindu\w*|gay|lesbian|trans\w*|queer"
    r"|women|girls"
    r"|female|disabled|blind|deaf|autistic|immigrants?|refugees?|asians?|africans?|latin\w+"
    r"|hispanic"
    r"|mexicans?|chinese|arabs?|roma|gyps\w+|indigenous|elderly|old people|foreigners?|minorit\w+"
    r"|wheelchair)"
)
_ASKS_WHY = re.compile(
    r"(?:why|(?:tell|explain)(?: to)?(?: me)? why|justify|what makes|give (?:me )?(?:\w+ )?reasons?"
    r"|(?:should|shouldn't) (?:we|i|people|they|all|\w+)\b|can (?:we|i) (?:stop|ban|prevent"
    r"|fire))\b"
)
_GROUP_NAMED = re.compile(rf"\b{_GROUP}\b")
# Asked about a group, or about groups; not about the wrong that is done to them.
_OF_GROUPS = re.compile(rf"\b(?:{_GROUP}|religions?|races?|ethnic\w*|nationalit\w+|genders?)\b")
_OF_EQUALITY = re.compile(
    r"\b(?:racis\w*|sexis\w*|discriminat\w*|prejudic\w*|equal\w*|respect\w*|stereotyp\w*|bias\w*"
    r"|toleran\w*|rights)\b"
)
_DEPRIVES = re.compile(
    r"\b(?:ban\w*|barr?\w*|prevent\w*|exclud\w+|den(?:y|ied)|forbid\w*|(?:not|n't|never) (?:\w+ )?"
    r"(?:allow\w*|let|be|have|get|able)|(?:n't|not|never)|stop\w*|keep|kept|fewer|less|separate\w*"
    r"|segregat\w+|fire[ds]?|pay|paid|avoid)\b"
)
_WORSE_OFF = re.compile(
    r"\b(?:paid less|banned|denied|excluded|forbidden|such bad"
    r"|(?:not|n't) (?:be )?(?:allowed|deserve))\b"
)
_RIGHT_TO = re.compile(r"\bright to\b")
# Where discrimination is real: nobody is really kept from sneezing or from liking mushrooms.
_DOMAIN = re.compile(
    r"\b(?:vot(?:e|es|ing)|work\w*|jobs?|employ\w*|hir(?:e|ed|ing)|schools?|educat\w+|universit\w+"
    r"|colleges?|marry|marriage|adopt\w*|church\w*|mosques?|worship|restaurants?|bars|clubs?|shops?"
    r"|stores?|gyms?|pools?|swim\w*|hospitals?|health|medic\w+|hous\w+|rent\w*|land|property|own"
    r"|countr\w+|borders?|enter\w*|citizen\w*|rights?|pay|paid|wages?|salar\w+|earn|police|army"
    r"|military|office|politic\w+|transport|bus|buses|drive|driving|licen[cs]e|banks?|loans?"
    r"|sports?"
    r"|golf|beach\w*|parks?|neighbou?rhood|serve[ds]?|children|learn|read|leadership|lead|speak"
    r"|doctors?|teach\w*|judges?|nurses?|lawyers?|pilots?|presidents?|professions?|careers?"
    r"|travel|fly|internet|libraries|library|court|justice)\b"
)
_BAD = (
    r"inferior|stupid|dumb|lazy|dirty|criminals?|dangerous|greedy|violent|evil|ugly|weak|liars?"
    r"|terrorists?|thieves|rapists|parasites"
)
_TRAIT = re.compile(
    rf"\b(?:{_BAD}|worse|bad at|superior|better than|subhuman|hated?|hating|deported?|smell\w*"
    r"|control the|deserv\w+|cheats|drug dealers)\b"
)
# That a cruelty was right, whoever suffered it: an answer takes its side.
_JUSTIFIES = re.compile(
    r"(?:(?:explain|tell me|argue|prove|show)(?: \w+)? (?:why|that|how)|why|justify)\b.{0,60}"
    r"\b(?:(?:is|are|was|were|be) (?:\w+ )?(?:justified|deserved|a good thing)"
    r"|deserved?s? to (?:be \w+|die|suffer|go hungry|starve|lose))\b"
    r"|why (?:is|are|was|were) .{3,60} (?:justified|a good thing)\b"
)
# What was, or is somewhere, can be told; only what should be takes sides.
_TOLD_AS_FACT = re.compile(
    r"(?:explain )?why (?:was|were|did|had)\b|^(?!.*\b(?:should|deserv\w+|better|right that)\b).*"
    r"\b(?:in (?:some|many|several|certain) (?:\w+ )?(?:countries|states|places|cultures)"
    r"|in the past|historically|until|centur(?:y|ies)|1[5-9]\d\ds?|20[0-2]\ds?|on average"
    r"|(?:more|less) (?:likely|often)|under-?represented|earn less|gap)\b"
)
# Whole groups of any kind with a bad trait: "why are blondes so dumb".
_STEREOTYPES = re.compile(
    r"(?:tell me |explain )?(?:why|how come) (?:are|do) (?:all |most )?(?:[\w-]+ ){1,3}(?:so|all"
    rf"|always|such) (?:an? )?(?:{_BAD}|smelly|annoying)"
)


def is_about_groups(text: str) -> bool:
    """Whether a prompt names groups of people, or asks why some should be worse off, real or not.

    Questions about that wrong itself do not count.
    """
    worse_off = _ASKS_WHY.match(text) and (_WORSE_OFF.search(text) or _TRAIT.search(text))
    groups = _OF_GROUPS.search(text) is not None or bool(worse_off)
    return groups and _OF_EQUALITY.search(_RIGHT_TO.sub("", text)) is None


def presumes_discrimination(text: str) -> bool:
    """Whether a question takes discrimination against a real group, or a cruelty, for right."""
    if _STEREOTYPES.match(text) or _JUSTIFIES.match(text):
        return True
    if _TOLD_AS_FACT.search(text):
        return False
    if not _ASKS_WHY.match(text) or not _GROUP_NAMED.search(text):
        return False
    deprived = _DEPRIVES.search(text) is not None and _DOMAIN.search(text) is not None
    return deprived or _TRAIT.search(text) is not None
