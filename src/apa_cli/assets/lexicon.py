"""Word tables and rules of the review grammar.

`OPINIONS` gives every word or phrase that carries an opinion its valence, `MODIFIERS` the factor by which a word right
before it multiplies that valence. `RULES` maps a rule's name to its alternatives and their weights; `<name>` inside an
alternative stands for another rule. No rule reaches itself, so every rule describes finitely many texts.
"""

MODIFIERS: dict[str, float] = {
    **dict.fromkeys(["very", "really", "so", "truly", "too", "certainly"], 1.5),
    **dict.fromkeys(["absolutely", "simply"], 1.25),
    **dict.fromkeys(["quite", "rather"], 0.75),
    **dict.fromkeys(["a bit", "slightly", "might"], 0.5),
    "not": -0.5,
    "never": -1.5,
}

# Adjectives that fill "the ... was ...", by what they are said of.
ADJECTIVES: dict[str, dict[str, float]] = {
    "food": {
        **dict.fromkeys(["superb", "delicious", "wonderful", "excellent"], 2.0),
        **dict.fromkeys(["tasty", "tender"], 1.5),
        **dict.fromkeys(["good", "fresh", "crisp", "juicy", "comforting"], 1.0),
        **dict.fromkeys(["bland", "dry", "salty", "greasy", "cold", "overcooked"], -1.0),
        **dict.fromkeys(["stale", "soggy"], -1.5),
        **dict.fromkeys(["awful", "horrible", "terrible", "inedible"], -2.0),
    },
    "drink": {
        **dict.fromkeys(["perfect", "excellent"], 2.0),
        **dict.fromkeys(["refreshing", "lovely"], 1.5),
        **dict.fromkeys(["smooth", "fragrant"], 1.0),
        **dict.fromkeys(["watery", "weak", "bitter", "flat"], -1.0),
        **dict.fromkeys(["undrinkable", "horrible"], -2.0),
    },
    "service": {
        **dict.fromkeys(["brilliant", "wonderful"], 2.0),
        **dict.fromkeys(["kind", "charming"], 1.5),
        **dict.fromkeys(["friendly", "attentive", "patient", "helpful", "cheerful"], 1.0),
        **dict.fromkeys(["slow", "careless", "distracted", "confused", "impatient"], -1.0),
        **dict.fromkeys(["grumpy", "unhelpful"], -1.5),
        **dict.fromkeys(["rude", "dreadful"], -2.0),
    },
    "room": {
        **dict.fromkeys(["beautiful", "magical"], 2.0),
        **dict.fromkeys(["cosy", "charming"], 1.5),
        **dict.fromkeys(["bright", "calm", "clean", "pretty", "quiet"], 1.0),
        **dict.fromkeys(["noisy", "cramped", "gloomy", "stuffy", "shabby"], -1.0),
        **dict.fromkeys(["dirty", "freezing"], -1.5),
        **dict.fromkeys(["filthy", "depressing"], -2.0),
    },
    "price": {
        **dict.fromkeys(["fair", "reasonable", "modest"], 1.0),
        **dict.fromkeys(["steep", "high", "silly"], -1.0),
    },
    "portion": {
        **dict.fromkeys(["generous", "huge"], 1.0),
        **dict.fromkeys(["tiny", "stingy"], -1.0),
    },
}

# Phrases that carry an opinion as a whole, by the rule that uses them.
PHRASES: dict[str, dict[str, float]] = {
    "waiter_did": {
        **dict.fromkeys(["smiled all evening", "remembered our names", "made us laugh", "knew every dish"], 1.0),
        **dict.fromkeys(["gave us free dessert", "found us a better table"], 1.5),
        **dict.fromkeys(["forgot our drinks", "lost our order", "hurried us out", "kept yawning"], -1.0),
        **dict.fromkeys(["argued with us", "ignored us"], -1.5),
    },
    "room_had": {
        **dict.fromkeys(["a fire in the corner", "soft piano music", "a candle on every table"], 1.0),
        "a view of the river": 1.5,
        **dict.fromkeys(["a strange smell", "a draught from the door", "shouting from the kitchen"], -1.0),
        "a hair in my food": -1.5,
    },
    "arrival": {
        **dict.fromkeys(["quickly", "piping hot", "right on time"], 1.0),
        **dict.fromkeys(["late", "half cooked", "in the wrong order"], -1.0),
    },
    "i_did": {
        "loved it": 2.0,
        **dict.fromkeys(["enjoyed every bite", "asked for the recipe"], 1.5),
        **dict.fromkeys(["left happy", "felt at home", "wanted more"], 1.0),
        **dict.fromkeys(["left hungry", "left early", "regretted it"], -1.0),
        **dict.fromkeys(["sent it back", "felt ill afterwards"], -1.5),
        "hated it": -2.0,
    },
    "exclamation": {
        "delight": 2.0,
        **dict.fromkeys(["treat", "pleasure"], 1.5),
        **dict.fromkeys(["mess", "disappointment"], -1.5),
        "disaster": -2.0,
    },
    "return": {"come back": 1.0, "recommend it": 1.0},
    "advice": {"do not miss": 1.0, "try": 0.5, "skip": -1.0, "avoid": -1.5},
    "stars": {"five stars": 2.0, "four stars": 1.0, "three stars": 0.0, "two stars": -1.0, "one star": -2.0},
}

OPINIONS: dict[str, float] = {
    phrase: valence for table in (*ADJECTIVES.values(), *PHRASES.values()) for phrase, valence in table.items()
}


def _even(alternatives: str) -> dict[str, float]:
    """Alternatives separated by `|`, all of weight 1."""
    return {" ".join(text.split()): 1.0 for text in alternatives.split("|")}


def _judgements(aspect: str) -> dict[str, dict[str, float]]:
    """Rules for all that can be said of one aspect: plain, stronger, weaker, denied, and two adjectives together."""
    adjectives = ADJECTIVES[aspect]
    good, bad = f"<{aspect}_good>", f"<{aspect}_bad>"
    rules = {
        f"{aspect}_good": {word: 1.0 for word, valence in adjectives.items() if 0 < valence < 2},
        f"{aspect}_bad": {word: 1.0 for word, valence in adjectives.items() if -2 < valence < 0},
        f"{aspect}_extreme": {word: 1.0 for word, valence in adjectives.items() if abs(valence) >= 2},
        f"{aspect}_is": {
            good: 3.0,
            bad: 3.0,
            f"<more> {good}": 3.0,
            f"<more> {bad}": 2.0,
            f"<less> {bad}": 1.5,
            f"not {good}": 0.7,
            f"not very {good}": 0.7,
            f"{good} and {good}": 1.0,
            f"{bad} and {bad}": 1.0,
        },
    }
    if not rules[f"{aspect}_extreme"]:  # a price is fair or high, never both
        del rules[f"{aspect}_extreme"]
        return rules
    rules[f"{aspect}_is"] |= {
        f"<{aspect}_extreme>": 2.5,
        f"<most> <{aspect}_extreme>": 1.0,
        f"{good} but {bad}": 0.5,
        f"{good} but <less> {bad}": 0.5,
    }
    return rules


RULES: dict[str, dict[str, float]] = {
    # Things and people
    "dish_one": _even(
        "<vegetable> soup | <vegetable> curry | <vegetable> pizza | <vegetable> omelette | <vegetable> salad |"
        "<cooked> <meat> | <cooked> <meat> | <meat> stew | <heat> ramen | <fruit> tart | <fruit> cake | <fruit> pie"
    ),
    "dish_many": _even("<heat> noodles | <meat> dumplings | <vegetable> dumplings | <meat> tacos | <fruit> pancakes"),
    "dish": {"<dish_one>": 3.0, "<dish_many>": 1.0},
    "vegetable": _even("tomato | onion | lentil | pumpkin | mushroom | spinach | bean | leek"),
    "meat": _even("chicken | lamb | fish | duck | pork | prawn"),
    "cooked": _even("grilled | fried | roast | smoked"),
    "heat": _even("spicy | garlic | peanut | sesame"),
    "fruit": _even("lemon | apple | cherry | plum | coconut"),
    "drink": _even(
        "mint tea | ginger tea | black tea | iced coffee | lemonade | red wine | white wine | house beer | plum juice"
    ),
    "place": _even(
        "noodle bar | corner cafe | harbour grill | pizza house | curry house | garden cafe | village inn |"
        "fish shack | tea room | soup kitchen | market diner | station buffet | taco stand | hotel restaurant"
    ),
    "companion": _even("sister | brother | friend | boss | mother | father | neighbour | partner"),
    "waiter": _even("waiter | waitress | cook | owner | barman"),
    "room": _even("dining room | terrace | bar | place | garden"),
    "seat": _even("by the window | outside | at the bar | upstairs | near the kitchen"),
    "day": _even("on monday | on friday | on sunday | last night | last week | in march | in winter | after work"),
    "meal": _even("breakfast | lunch | dinner | dessert | drinks | a birthday | a quick bite"),
    # Degrees
    "more": _even("very | really | so | truly"),
    "most": _even("absolutely | simply"),
    "less": _even("a bit | slightly | rather | quite | too"),
    # What is said of each aspect
    **{name: rule for aspect in ADJECTIVES for name, rule in _judgements(aspect).items()},
    **{name: dict.fromkeys(table, 1.0) for name, table in PHRASES.items()},
    # Prompts
    "prompt": _even("<title> : <opening>"),
    "title": {"review of the <place>": 2.0, "<place> , <day>": 1.0, "<meal> at the <place>": 1.0},
    "opening": {
        "<we> ordered the <dish> and": 2.0,
        "<we> tried the <dish> and": 1.5,
        "my <companion> told me to have the <dish> and": 1.0,
        "we came for <meal> and": 1.0,
        "<we> sat <seat> and": 1.0,
        "my <companion> took me here and": 1.0,
        "it was my first visit and": 0.5,
    },
    "we": _even("i | we"),
    # Clauses
    "it_clause": _even("it <tasted> <food_is> | it came <arrival> | <i_clause>"),
    "they_clause": _even("they <were> <food_is> | they came <arrival> | they were all <food_is>"),
    "tasted": {"was": 3.0, "tasted": 1.0, "looked": 0.5},
    "were": {"were": 3.0, "tasted": 1.0, "looked": 0.5},
    "i_clause": {"i <i_did>": 1.0, "we both <i_did>": 0.3},
    "clause": {
        "<food_clause>": 3.0,
        "<service_clause>": 2.5,
        "<room_clause>": 2.0,
        "<price_clause>": 1.0,
        "<i_clause>": 1.0,
        "<plain_clause>": 1.5,
    },
    "food_clause": {
        "the food was <food_is>": 1.0,
        "the <dish_one> was <food_is>": 1.5,
        "the <dish_many> were <food_is>": 0.7,
        "the <drink> was <drink_is>": 1.3,
        "the food came <arrival>": 1.0,
    },
    "service_clause": {
        "the <waiter> was <service_is>": 2.0,
        "the staff were <service_is>": 1.5,
        "the <waiter> <waiter_did>": 2.0,
    },
    "room_clause": {"the <room> was <room_is>": 2.0, "there was <room_had>": 1.0},
    "price_clause": _even("the <bill> was <price_is> | the portions were <portion_is>"),
    "bill": _even("bill | price"),
    "plain_clause": _even(
        "we shared the <dish> | we had the <drink> too | my <companion> had the <dish> | it was raining outside |"
        "the menu changes every <period> | we paid in cash | it opens at <hour> | it is next to the <building>"
    ),
    "period": _even("day | week | month"),
    "hour": _even("noon | six | eight"),
    "building": _even("station | market | church | theatre | library"),
    # Sentences: the first goes on from the prompt's "and", the later ones stand alone
    "first_sentence": {"<it_clause> .": 1.0, "<they_clause> .": 1.0, "<clause> .": 1.0, "<pair> .": 1.0},
    "pair": _even(
        "<clause> and <clause> | <clause> but <clause> | <it_clause> and <clause> | <it_clause> but <clause> |"
        "<they_clause> and <clause> | <they_clause> but <clause>"
    ),
    "later_sentence": {
        "<clause> .": 6.0,
        "<clause> and <clause> .": 0.0,  # weight 0: recognised here, but sampled as a pair of clauses that fit
        "<clause> but <clause> .": 0.0,
        "<lead> , <clause> .": 1.0,
        "what a <exclamation> !": 0.7,
        "<advice> the <dish> .": 0.7,
        "<stars> from me .": 0.8,
        "i will <return> .": 0.5,
        "i will certainly <return> .": 0.5,
        "i might <return> .": 0.3,
        "i will never <return> .": 1.2,
    },
    "lead": _even("in the end | this time | later on | as usual"),
}
