"""What the synthesisers are made to say. All of it was written for this project.

Rich in what is seen on the lips: p b m, /a/ /i/ /u/, f v, w o. `TRAINING` and `EVALUATION` have no text in common.
"""
# ruff: noqa: RUF001 - Cyrillic and Turkish letters look like others

from __future__ import annotations

from typing import Final

__all__ = ["EVALUATION", "TRAINING", "VOICE_OF"]

TRAINING: Final[dict[str, tuple[str, ...]]] = {
    "en": (
        "My mother mopped up the spilled apple jam before bedtime.",
        "Pam put a warm blanket over the baby's feet.",
        "A big brown bumblebee buzzed above the poppies.",
        "Have you ever heard five wolves in a valley?",
        "We watched the moon move over the empty harbour.",
        "Bob's boat bumped against the wooden pier, and we jumped off.",
        "Please bring me a bowl of hot soup and a piece of bread.",
        "The farmer's wife found a fox behind the fence.",
        "Two blue shoes stood by the pool in the afternoon.",
        "Maybe Papa will make pumpkin pie for supper.",
        "She keeps three green peas in each of these teacups.",
        "Far away, a calm father parked a large car.",
        "Who knew that the goose would move so soon?",
        "Pick up the map, open it, and point to the palm tree.",
        "I'm afraid the problem is much bigger than it seemed.",
        "Every evening, the violin and the flute fill the village.",
        "Why would a wise woman walk through the wet woods?",
        "Open the oven, though, and go home over the snow.",
        "Jump up, bump down, stamp, clap, and bow.",
        "Mum's lamp hums; Ben's pump bubbles; Tim's drum booms.",
        "Can you see me? I can hardly see you in the steam.",
        "Happy people often forgive a bad mood.",
        "The wind blew the umbrella above the museum roof.",
        "It took a week to move the piano up to my room.",
        "Zero, one, two, three, four, five, six, seven, eight, nine, ten.",
        "Good morning! How may I help you today?",
        "Nobody believed that the camel could climb the bamboo ramp.",
        "Shush! The sheep should sleep, and you should wash the dishes.",
        "A thick thorn and thin thread: that's what the brothers gathered.",
        "Yes, you may use your yellow yo-yo next year.",
        "Black ink drips quickly; keep the thick book back.",
        "Amber, remember: members of the company sample simple pumps.",
        "Wow, what a view of the ocean, and what a slow wave!",
        "Father's calm palm. Ha, ha, ha! Ah, a spa.",
    ),
    "nonsense": (
        "papa, mama, baba, pipi, mimi, bibi, pupu, mumu, boo boo.",
        "apa, aba, ama. eepee, eebee, eemee. oopoo, ooboo, oomoo.",
        "pah, pee, poo. bah, bee, boo. mah, mee, moo.",
        "fah vee foo, vah fee voo, fee fah, voo vah.",
        "wah wee woo, wah wow, woe woo wee.",
        "ah, ee, oo. ah, ee, oo. oo, ee, ah. ee, ah, oo.",
        "lamba, limbee, loomboo; tampa, timpee, toompoo.",
        "pama, bapa, maba, pimee, beepee, meebee.",
        "ah oo ah oo ah. ee oo ee oo ee.",
        "sapa, shama, zaba, chapa, kama, gaba.",
        "bim, bam, boom; pip, pap, poop; mim, mam, moom.",
        "mow, bow, vow, wow, how, now. boy, toy, joy.",
    ),
    "de": (
        "Meine Mama backt am Abend ein paar Brombeerpfannkuchen.",
        "Der Bäcker bringt die Butter und bleibt am Bach.",
        "Wo wohnt die Frau mit den fünf weißen Vögeln?",
        "Peter packt die bunten Lampen in ein Paket.",
        "Im Sommer schwimmen wir am liebsten im Moor.",
        "Du musst die Schuhe putzen, bevor du gehst.",
        "Viele Füchse fliehen vor dem wilden Wolf.",
        "Ob Papa am Samstag kommt, bleibt abzuwarten.",
        "Sieben liebe Ziegen spielen auf der Wiese.",
        "Ein hübsches Mädchen übt früh am Klavier.",
    ),
    "fr": (
        "Maman apporte un bon pain au beurre.",
        "Le petit bébé a bu son biberon ce matin.",
        "Papa prépare une soupe de pommes de terre.",
        "Où vas-tu avec ce beau bouquet de mimosas?",
        "Nous voulons voir la mer avant la pluie.",
        "Il fume une pipe et regarde passer les bateaux.",
        "Une bulle bleue tombe doucement sur la mousse.",
        "Vous avez perdu votre parapluie dans la rue.",
        "La vieille femme aime beaucoup les animaux.",
    ),
    "es": (
        "Mi mamá pone una manzana en el bolso.",
        "El abuelo Pablo busca un buen pueblo para vivir.",
        "Bebo un vaso de agua fría por la mañana.",
        "Una mujer muy amable baila con su amigo.",
        "Los buques blancos pasan por el puerto.",
        "Tú subes y yo bajo; mi papá va por la playa.",
        "Me gusta mucho la música de los pájaros.",
        "Febrero fue un mes frío, pero muy bonito.",
    ),
    "it": (
        "La mamma prepara il pane con la pasta di mandorle.",
        "Un bambino bravo beve l'acqua al bar.",
        "Il babbo porta una bambola bella a Palermo.",
        "Vorrei una fetta di formaggio e un po' di uva.",
        "Più su, più giù: la luna è sopra il mare.",
        "Beppe ama i fiumi, i boschi e i campi.",
        "Chi vive in campagna ha meno problemi.",
    ),
    "pt": (
        "A minha mãe comprou um bolo de maçã.",
        "O bom povo bebe vinho e fala baixo.",
        "Bruno põe o pão em cima da mesa.",
        "Uma pomba branca voa sobre o mar.",
    ),
    "nl": (
        "Mijn moeder maakt een pan met bruine bonen.",
        "De boer brengt een mooie bloem voor papa.",
        "Wij wonen vlak bij een wilde rivier.",
        "Buiten blaffen vijf boze honden bij de poort.",
    ),
    "pl": (
        "Moja mama kupiła piękny bukiet.",
        "Babcia pomaga wnukom umyć filiżanki.",
        "W maju ptaki budują małe gniazda.",
    ),
    "ru": (
        "Мама купила большую банку мёда.",
        "Папа поймал рыбу и пошёл домой.",
        "Наша бабушка любит белые пионы.",
        "Мы увидели волка у моста.",
        "Иван и Вера пили вино в парке.",
        "Потом опять пошёл мокрый снег.",
    ),
    "tr": (
        "Babam bana büyük bir bisiklet aldı.",
        "Annem mutfakta mis gibi börek yapıyor.",
        "Bu bebek hep uyumak istiyor.",
    ),
    "fi": (
        "Mummo paistaa pullaa ja puuroa.",
        "Vauva uimaan, äiti ompelee paidan.",
        "Pöydällä on pieni musta lamppu.",
    ),
    "id": (
        "Ibu membeli buah mangga di pasar.",
        "Bapak membawa payung biru ke rumah.",
        "Kami suka makan bubur ayam panas.",
    ),
    "sw": (
        "Mama anapika wali na samaki.",
        "Baba yangu amepanda mti mpya.",
        "Watoto wawili wanaimba wimbo.",
    ),
    "zh": (
        "ma1ma0 mai3 le0 ba1 ge0 ping2guo3.",
        "ba4ba0 pao3 bu4, bao3bao0 bao4 mao1.",
        "wo3 bu4 pa4 wu2 bo2wu4guan3.",
        "ni3 de0 peng2you3 fei1 chang2 mang2.",
    ),
    "hi": (
        "मेरी माँ मीठे आम बाँट रही है।",
        "पापा बाहर पानी पी रहे हैं।",
        "भाई ने फूल और पपीता लिया।",
        "वह बहुत बड़ा बाग है।",
    ),
    "ja": (
        "ままは まいにち ぱんを たべます。",
        "ぼくの ぱぱは ばすに のります。",
        "ふゆの うみは とても さむいです。",
        "びわと ぶどうを もう ひとつ ください。",
    ),
}
"""by language; "nonsense" is spelled for an English voice"""

EVALUATION: Final[dict[str, tuple[str, ...]]] = {
    "en": (
        "A puppy jumped over the muddy path to meet my brother.",
        "Imagine a small room, a big map and a cup of tea.",
        "Tim's uncle played a grand piano beneath the maple tree.",
        "Could you move the blue box above the cupboard, please?",
        "Emma and Abby keep bees by the farm.",
        "A happy camper has popcorn, plums, and a warm campfire.",
        "The band began to play; people clapped and moved their feet.",
        "Steve may sleep until two, but Barbara starts at half past four.",
    ),
    "nonsense": (
        "mapa, nipee, lubu, gama, keebee, doomoo.",
        "ah, oo, ee, ah. tah tee too, kah kee koo.",
        "bah moo pee, mah boo bee, pah poo mee.",
    ),
    "de": ("Am Morgen malte Oma bunte Blumen auf die Mappe.", "Die Puppe stand mitten im Raum und summte."),
    "fr": ("Mon ami habite près de la place du marché.", "La poupée boit du lait sous la pluie."),
    "es": ("La paloma sube a la cima; mi amiga va a Lima.", "Papá compra un mapa de la ciudad."),
    "it": ("Una capra bruna mangia i fiori vicino al lupo.", "Mimi ama la pizza e il mambo."),
    "ru": ("Бабочка летит на поле мимо дома.", "Утром Зина мыла лапы кота."),
    "hi": ("बिल्ली मामा के पास बैठी है।",),
    "ja": ("まみは ぷーると やまが すきです。",),
    "zh": ("ma1mi0 mai4 pi2pa2, bu4 mai4 mu4ma3.",),
}

VOICE_OF: Final[dict[str, str]] = {
    "en": "en-us", "nonsense": "en", "de": "de", "fr": "fr", "es": "es", "it": "it", "pt": "pt-br", "nl": "nl",
    "pl": "pl", "ru": "ru", "tr": "tr", "fi": "fi", "id": "id", "sw": "sw", "zh": "cmn-latn-pinyin", "hi": "hi",
    "ja": "ja",
}  # fmt: skip
"""language of espeak-ng for each of the lists; flite reads "en" and "nonsense" only"""
