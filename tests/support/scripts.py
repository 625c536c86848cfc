"""Hashtags by script, clean ones as communities write them; doubled letters, digits and words among them."""

from model.text.hashtags import clean_tags

HASHTAGS = {
    "English": [
        *("citywalk", "coffee", "slow_travel", "3d", "bookkeeper", "aaaa", "www", "new_york", "bora_bora", "hahaha"),
        *("1000", "2022_recap", "24_7", "20_000_steps", "diy", "a", "7", "mississippi_riverboat_cruise"),
    ],
    "Latin with accents": [
        *("café", "crème_brûlée", "señorita", "übernachtung", "smörgåsbord", "đà_nẵng", "łódź", "şehir", "ñandú"),
    ],
    "Russian": ["путешествие", "кофе", "осень2024", "йога_дома", "ёлка", "завтрак", "скоро_лето"],
    "Chinese": [
        *("旅行", "咖啡", "城市漫步", "人人", "天天向上", "上海探店", "穿搭ootd", "露营", "減脂餐", "一人食", "耀眼"),
        *("看看", "2024年终总结", "龘", "自己在家做的不需要烤箱的草莓奶油蛋糕卷"),
    ],
    "Japanese": [
        "京都",
        "カフェ巡り",
        "いただきます",
        "ゴゴゴ",
        "お弁当",
        "ラーメン",
        "猫のいる暮らし",
        "ひとり旅2024",
        "々",
    ],
    "Korean": ["여행", "카페투어", "오늘의집", "맛집", "가가", "서울_산책", "홈트레이닝"],
    "Thai": ["ท่องเที่ยว", "กาแฟ", "ที่เที่ยว", "อาหารไทย", "น้ำตก", "เชียงใหม่", "รีวิวร้านกาแฟเชียงใหม่"],
    "Arabic": ["سفر", "قهوة", "قَهْوَة", "وصفات_سهلة", "طبخ", "رمضان2024", "الرياض"],
    "Hindi": ["यात्रा", "हिन्दी_खाना", "कॉफ़ी", "घर_की_सजावट", "योग", "दिल्ली", "मम्मी"],
    "Mixed": ["東京trip", "k드라마", "ラーメン二郎", "café旅行", "diy教程3", "тбилиси2024", "thaiอาหาร", "योगa"],
}
# Not hashtags: nothing of them may be written.
EMOJI = ["🍜", "🎉🎉", "☕", "❤️", "👩‍🍳", "🇯🇵", "1️⃣"]


def hashtags() -> dict[str, list[str]]:
    """By script, in the form that `clean_tag` gives them."""
    return {script: clean_tags(tags) for script, tags in HASHTAGS.items()}


def lists(tags: list[str]) -> list[list[str]]:
    """Lists of five in which every hashtag is once in every place."""
    return [[tags[(first + place) % len(tags)] for place in range(5)] for first in range(len(tags))]
